// The page of `pianogen show`: a piece as a roll, and beside it the tokens that a model reads, followed as it plays.

import { Player } from "./player.js";
import { Piano } from "./sound.js";

const TOKEN = encodeURIComponent(new URLSearchParams(location.search).get("token") ?? "");
const element = (id) => document.getElementById(id);
const address = (path) => `${path}?token=${TOKEN}`;

const piano = new Piano();
let spans = [], seconds = [], shown = -1, first = 0;

// Tokens up to the ones that are heard now are past; the view follows.
function follow(second, isPlaying) {
  element("play").textContent = isPlaying ? "Pause" : "Play";
  element("time").textContent = `${second.toFixed(1)} of ${(player.seconds ?? 0).toFixed(1)} s`;
  const index = lastUntil(second);
  if (index === shown) return;
  for (let each = Math.max(Math.min(first, index), 0); each <= Math.max(index, shown); each++) {
    spans[each].className = each <= index ? "past" : "";
  }
  shown = first = index;
  while (first > 0 && seconds[first - 1] > seconds[index] - 0.001) first--;
  for (let each = first; each <= index; each++) if (each >= 0) spans[each].className = "now";
  if (index >= 0 && isPlaying) spans[index].scrollIntoView({ block: "nearest" });
}

// Index of the last token that is heard at a second or before; -1 if none is.
function lastUntil(second) {
  let low = 0, high = seconds.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (seconds[middle] <= second + 0.001) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

const player = new Player(element("roll"), piano, follow);

window.pianogen = { piano, player }; // for whoever looks at the page from outside

function showTokens(tokens) {
  spans = tokens.map(([text, second], index) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.title = `token ${index}, ${second.toFixed(2)} s`;
    span.onclick = () => player.seek(second);
    return span;
  });
  seconds = tokens.map(([, second]) => second);
  element("tokens").append(...spans);
}

element("play").onclick = () => (player.isPlaying ? player.pause() : player.play());
window.addEventListener("keydown", (event) => {
  if (event.code !== "Space" || event.target.matches("button")) return;
  event.preventDefault();
  element("play").click();
});

const [piece, about] = await Promise.all(["piece.json", "sounds.json"].map((each) => fetch(address(each)).then((answer) => answer.json())));
element("name").textContent = piece.name;
element("facts").textContent = piece.facts;
player.load(piece.notes);
showTokens(piece.tokens);
if (!about.pitches || !(await piano.load(address("sounds.wav"), about))) {
  element("message").textContent = 'Sound of a simple synthesizer: pip install "pianogen_hf[audio]" for a piano.';
}
