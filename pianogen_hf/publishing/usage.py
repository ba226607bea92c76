"""How a model is loaded and used, as its card shows it: for each training objective."""

from __future__ import annotations

from typing import Any

from pianogen_hf.models.objectives import ANY_ORDER, NEXT_EVENT, NEXT_NOTE, NEXT_TOKEN, NOTE_AMONG_GIVEN, PART_FROM_PART

_TOKENS: dict[str, Any] = {
    "encoder": "tokenizer",
    "encoder_class": "AutoTokenizer",
    "model_class": "AutoModelForCausalLM",
    "options": 'return_tensors="pt"',
    "lines": ["ids = model.generate(**inputs, max_new_tokens=200, do_sample=True, top_p=0.95)"],
    "steps": "ids",
    "fill": "",
    "does": "does the same, constrained by the tokenizer's grammar",
}
_ROWS: dict[str, Any] = {
    **_TOKENS,
    "encoder": "extractor",
    "encoder_class": "AutoFeatureExtractor",
    "options": 'is_prompt=True, return_tensors="pt"',
    "lines": ['rows = model.generate(input_values=inputs["input_values"], max_new_tokens=200, top_p=0.95)'],
    "steps": "rows",
    "does": "does the same, for as many seconds as you say",
}
# Names, lines of Python, options of `pianogen generate` and words, under the names that the card's template uses.
USAGES: dict[str, dict[str, Any]] = {
    NEXT_TOKEN: _TOKENS,
    ANY_ORDER: {
        **_TOKENS,
        "model_class": "AutoModelForMaskedLM",
        "options": 'return_tensors="pt", truncation=True, max_length=model.config.max_position_embeddings',
        "lines": [
            'place = inputs["attention_mask"].cumsum(-1)',
            'ids = model.refill(inputs["input_ids"], mask=(place > 20) & (place <= 60), top_p=0.95)  # 40 tokens anew',
        ],
        "fill": " --fill 4 8",
        "does": "fills seconds 4 to 8, constrained by the tokenizer's grammar; without `--fill` it continues",
    },
    NEXT_EVENT: {
        **_TOKENS,
        "lines": ["rows = model.generate(**inputs, max_new_tokens=200, temperature=1.0, top_p=0.98, top_k=20)"],
        "steps": "rows",
        "does": "does the same, for as many seconds as you say",
    },
    NEXT_NOTE: _ROWS,
    PART_FROM_PART: {
        **_TOKENS,
        "model_class": "AutoModelForSeq2SeqLM",
        "lines": [
            "import torch",
            'notes = tokenizer.note_steps(inputs["input_ids"][0])[:40]  # the melody',
            'parts = {"<mseq>": notes, "<cseq>": notes[:0]}  # what is given, and the other part, yet to be written',
            "melody, begin = (torch.from_numpy(tokenizer.part_ids(*each))[None] for each in parts.items())",
            "ids = model.generate(melody, decoder_input_ids=begin, max_new_tokens=200, do_sample=True, top_p=0.95)",
        ],
        "fill": " --harmonise",
        "does": "writes below all of a melody, window by window; `--accompany above` writes a melody to "
        "an accompaniment",
    },
    NOTE_AMONG_GIVEN: {
        **_ROWS,
        "fill": " --fill 4 8",
        "does": "fills seconds 4 to 8; without `--fill` it continues, and with `--accompany below` it adds a left hand",
    },
}
