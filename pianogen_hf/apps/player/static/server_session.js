// The session of `pianogen play`: the model is on the server, which tells what happens through a web socket.

const TOKEN = encodeURIComponent(new URLSearchParams(location.search).get("token") ?? "");

export class ServerSession {
  #socket = null;

  // Call `onEvent` with whatever happens, now and for as long as the page is open.
  begin(onEvent) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.#socket = new WebSocket(`${scheme}://${location.host}/session?token=${TOKEN}`);
    this.#socket.onmessage = ({ data }) => onEvent(JSON.parse(data));
    this.#socket.onclose = () => {
      onEvent({ type: "lost", message: "The server is gone: start pianogen play again, or wait." });
      setTimeout(() => this.begin(onEvent), 1500);
    };
    clearInterval(this.pinging);
    this.pinging = setInterval(() => this.send({ type: "ping" }), 1000); // by the answers the page sets its clock
  }

  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  // Take a MIDI file, as an ArrayBuffer; gives {notes}.
  openPiece(bytes) {
    return this.#ask("piece", bytes);
  }

  // Let the model continue, end, fill or accompany the piece; gives {notes}.
  changePiece(wish) {
    return this.#ask("verb", JSON.stringify(wish));
  }

  async #ask(path, body) {
    const answer = await fetch(this.address(path), { method: "POST", body });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.message);
    return found;
  }

  // Where what was played can be had as a MIDI file: "session.mid" or "piece.mid".
  fileAddress(name) {
    return this.address(name);
  }

  address(path) {
    return `${path}?token=${TOKEN}`;
  }
}
