"""What a model folder answers through the Auto classes alone: in a test with the package, and as a program without it.

As a program it takes a JSON file with `folders` (name: folder), `prompt` (a MIDI file), `again` (names of folders to
be saved and loaded once more) and `needs_miditok` (a folder), and writes JSON to the standard output.
"""

import importlib
import json
import sys
from pathlib import Path


class Absent:
    """Finds none of these packages, wherever they are installed."""

    names = {"pianogen_hf", "lazy_loader", "miditok"}

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def load(folder, **how):
    """The head that was saved, and what makes its inputs; of a folder or a name on the Hub."""
    import transformers as hf
    from transformers.utils import cached_file

    config = hf.AutoConfig.from_pretrained(folder, **how)
    head = next((each for each in ("ForCausalLM", "ForMaskedLM") if each in config.architectures[0]), "ForCausalLM")
    model = getattr(hf, f"AutoModel{head}").from_pretrained(folder, **how)
    has_extractor = cached_file(folder, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    reader = hf.AutoFeatureExtractor if has_extractor else hf.AutoTokenizer
    return model, reader.from_pretrained(folder, **how)


def answers(folder, prompt, **how):
    """Logits, generated ids or notes, their MIDI file read back, and a pipeline's text, in JSON's types."""
    import torch
    import transformers as hf

    model, reader = load(folder, **how)
    music = None
    if "custom_pipelines" in json.loads(Path(folder, "config.json").read_text()):
        made = hf.pipeline("midi-generation", model=folder, **how)(prompt, max_new_tokens=12, seed=1)
        music = [made["midi"].hex(), made["new_notes"]]
    parts = [model, model.config, reader]
    if "AutoModel" in getattr(model.config, "auto_map", ["AutoModel"]):
        parts.append(hf.AutoModel.from_pretrained(folder, **how))
    told = {"classes": [type(each).__name__ for each in parts]}
    told["music"] = music
    torch.manual_seed(0)
    if hasattr(reader, "sampling_rate"):
        inputs = reader(Path(prompt), is_prompt=True, return_tensors="pt")
        notes = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, seed=1)
        told["logits"] = model(notes, labels=notes[..., 1].long()).logits[0, -1].tolist()
        told["written"] = notes[0].tolist()
        midi = reader.to_midi(notes[0])
        told["read back"] = reader(midi)["input_values"][0].tolist()
        return told
    inputs = reader(Path(prompt), return_tensors="pt")
    ids = inputs["input_ids"]
    told["logits"] = model(**inputs).logits[0, -1].tolist()
    if ids.ndim == 3:
        rows = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, seed=1)[0]
        told["written"] = rows.tolist()
        told["read back"] = reader(reader.to_midi(rows))["input_ids"]
        return told
    if hasattr(model, "refill"):
        written = model.refill(ids, torch.arange(ids.shape[1])[None] > 12, steps=3)
    else:
        told["generation"] = hf.GenerationConfig.from_pretrained(folder).to_diff_dict()
        written = model.generate(
            **inputs,
            max_new_tokens=24,
            do_sample=True,
            prefix_allowed_tokens_fn=lambda _, ids: reader.allowed_next(ids).nonzero()[0].tolist(),
        )
        pipeline = hf.pipeline("text-generation", model=folder, **how)
        text = pipeline(reader.decode(ids[0, 1:]), max_new_tokens=6)[0]["generated_text"]
        told["text"] = [text, reader.to_midi(text).hex()]
    told["written"] = written[0].tolist()
    midi = reader.to_midi(written[0])
    told["read back"] = reader(midi)["input_ids"]
    return told


def without_miditok(folder):
    """The message that its tokenizer gives."""
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        return str(error)


def hide_package():
    """Let this process be one in which the package is not installed."""
    sys.meta_path.insert(0, Absent())
    try:
        importlib.import_module("pianogen_hf")
    except ModuleNotFoundError:
        return
    raise AssertionError("the package can be imported")


def main(path):
    """Answer without the package."""
    hide_package()
    work = json.loads(Path(path).read_text())
    prompt = work["prompt"]
    told = {"without miditok": without_miditok(work["needs_miditok"])}
    Absent.names.discard("miditok")
    told["first"] = {name: answers(folder, prompt, trust_remote_code=True) for name, folder in work["folders"].items()}
    told["again"] = {}
    for name in work["again"]:
        folder = work["folders"][name]
        for part in load(folder, trust_remote_code=True):
            part.save_pretrained(f"{folder}-again")
        told["again"][name] = answers(f"{folder}-again", prompt, trust_remote_code=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
