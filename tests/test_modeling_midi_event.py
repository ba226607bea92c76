"""The two-level model of MIDI events: the original's numbers, caches, padding, grammar, loss, saving."""

import json

import pytest
import torch
from models_and_tokenizers import loosened, published_midi_event, some_notes, tiny_model
from transformers import AutoModelForCausalLM

import pianogen_hf as pg
from pianogen_hf.models.event_generation import EventGrammar, IdDraw

TOKENIZER = pg.MidiEventTokenizer()


def make_model(**settings):
    torch.manual_seed(0)
    settings = {"event_blocks": TOKENIZER.event_blocks, **settings}
    return loosened(tiny_model(pg.MidiEventForCausalLM, len(TOKENIZER), **settings))


def rows_of(seed=0, num_notes=6):
    return torch.from_numpy(TOKENIZER.encode_piece(some_notes(seed, num_notes)))[None]


def padded(prompts, side):
    length = max(each.shape[1] for each in prompts)
    rows, mask = torch.zeros(len(prompts), length, 8, dtype=torch.long), torch.zeros(len(prompts), length).long()
    for index, each in enumerate(prompts):
        kept = slice(length - each.shape[1], None) if side == "left" else slice(0, each.shape[1])
        rows[index, kept], mask[index, kept] = each[0], 1
    return rows, mask


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return published_midi_event(tmp_path_factory.mktemp("published"))


@torch.no_grad()
def test_published_weights_load_by_their_names_and_give_the_original_s_numbers(published):
    folder, outputs = published
    model, info = pg.MidiEventForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    output = model.eval()(outputs["input_ids"].long())
    torch.testing.assert_close(output.last_hidden_state[:, :-1], outputs["hidden"], atol=1e-5, rtol=0)
    logits = output.logits.flatten(0, 1)[..., outputs["used"]]
    torch.testing.assert_close(logits[:3], outputs["logits_first3"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[-3:], outputs["logits_last3"], atol=1e-5, rtol=0)


def test_a_published_configuration_that_its_code_never_wrote_is_refused(published):
    config = json.loads((published[0] / "config.json").read_text())
    config.pop("model_type")
    config["net_config"]["num_key_value_heads"] = 2
    with pytest.raises(ValueError, match="num_key_value_heads 2"):
        pg.MidiEventConfig(**config)


# What an id sees ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_id_sees_the_events_before_it_and_the_ids_before_it_in_its_event():
    model, rows = make_model(), rows_of()
    logits = model(rows).logits
    changed = rows.clone()
    changed[0, 4, 5] = TOKENIZER.convert_tokens_to_ids("pitch_100")
    moved = (model(changed).logits - logits).abs().amax(-1)[0] > 1e-6
    assert not moved[:3].any() and moved[3].tolist() == [False] * 6 + [True] * 2 and moved[4:].all()


@torch.no_grad()
def test_one_event_alone_has_a_hidden_state_and_predicts_none():
    output = make_model()(rows_of()[:, :1])
    assert output.last_hidden_state.shape == (1, 1, 32) and output.logits.shape == (1, 0, 8, len(TOKENIZER))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(side):
    model, pieces = make_model(), [rows_of(0, 6), rows_of(1, 2)]
    rows, mask = padded(pieces, side)
    batch = model(rows, attention_mask=mask).logits
    short = pieces[1].shape[1]
    kept = slice(-(short - 1), None) if side == "left" else slice(0, short - 1)
    torch.testing.assert_close(batch[1, kept], model(pieces[1]).logits[0], atol=1e-5, rtol=1e-5)


# Generation -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_greedy_generation_equals_argmax_without_caches():
    model, rows = make_model(), rows_of()[:, :-1]
    written = model.generate(rows, max_new_tokens=6, do_sample=False, min_new_tokens=6)
    for row in range(rows.shape[1], written.shape[1]):
        for place in range(8):
            known = written[:, : row + 1].clone()
            known[:, -1, place:] = 0
            logits = model(known).logits[0, -1, place]
            allowed = torch.from_numpy(TOKENIZER.allowed_next(known[0].flatten()[: 8 * row + place]))
            allowed[TOKENIZER.eos_token_id] = False
            assert written[0, row, place] == logits.masked_fill(~allowed, -torch.inf).argmax()


def test_left_padded_prompts_are_continued_as_each_alone():
    model, prompts = make_model(), [rows_of(0, 6)[:, :-1], rows_of(1, 2)[:, :-1]]
    rows, mask = padded(prompts, "left")
    batch = model.generate(rows, mask, max_new_tokens=5, do_sample=False)[:, rows.shape[1] :]
    for new, prompt in zip(batch, prompts, strict=True):
        alone = model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :]
        assert torch.equal(new[: len(alone)], alone)
    with pytest.raises(ValueError, match="left"):
        model.generate(*padded(prompts, "right"), max_new_tokens=1)


def test_whatever_is_drawn_decodes_and_is_repeatable():
    model = make_model()
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "temperature": 2.0, "num_return_sequences": 3}
    written = model.generate(seed=1, **options)
    assert torch.equal(written, model.generate(seed=1, **options))
    assert not torch.equal(written, model.generate(seed=2, **options))
    for rows in written:
        for end in range(8, rows.numel()):
            assert TOKENIZER.allowed_next(rows.flatten()[:end])[rows.flatten()[end]]
        assert all(TOKENIZER._values(row) is not None for row in rows[1:].tolist())


def test_after_the_end_of_a_piece_there_is_padding():
    model = make_model(event_blocks=[])  # nothing but the end
    written = model.generate(torch.cat([rows_of()[:, :3], rows_of(1)[:, :3]]), max_new_tokens=4)
    assert written[:, 3:].tolist() == [[[2] + [0] * 7]] * 2
    rows, mask = padded([rows_of(0, 2), rows_of(1, 3)[:, :-1]], "left")
    written = make_model().generate(rows, mask, max_new_tokens=2, min_new_tokens=2)[:, -2:]
    assert (written[0] == 0).all() and (written[1, :, 0] > 2).all()


def test_forbidden_ids_are_not_written():
    model = make_model()
    notes_alone = TOKENIZER.convert_tokens_to_ids([name for name in TOKENIZER.layout.events if name != "note"])
    forbidden = [*notes_alone, *TOKENIZER.silent_ids]
    written = model.generate(max_new_tokens=15, min_new_tokens=15, forbidden_ids=forbidden, temperature=3.0)
    assert set(written[0, 1:, 0].tolist()) == {TOKENIZER.convert_tokens_to_ids("note")}
    assert not torch.isin(written[0, 1:], torch.tensor(forbidden)).any()


def test_the_likeliest_are_chosen_among_what_is_allowed():
    """The original held top_p against the probability of all ids: with little left in the block, everything passed."""
    logits = torch.full((1, 100), 5.0)
    logits[0, :3] = torch.tensor([4.0, 0.0, -1.0])
    allowed = torch.zeros(1, 100, dtype=torch.bool)
    allowed[0, :3] = True
    draw = IdDraw(1.0, 0.9, None, torch.Generator().manual_seed(0))
    assert {int(draw(logits.masked_fill(~allowed, -torch.inf))) for _ in range(200)} == {0}


def test_generation_goes_on_beyond_the_context():
    model = make_model()
    model.config.max_position_embeddings = model.net.config.max_position_embeddings = 8
    written = model.generate(rows_of()[:, :6], max_new_tokens=20, min_new_tokens=20)
    assert written.shape == (1, 26, 8)


def test_without_a_grammar_only_padding_follows_the_end():
    grammar = EventGrammar(pg.MidiEventConfig(), (), torch.device("cpu"))
    row = torch.tensor([[2, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0]])
    assert grammar.allowed(row, 1, True).sum(-1).tolist() == [1, 3406]


# Loss, saving ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_all_ids_but_padding():
    model, rows = make_model(), rows_of()
    labels = rows.clone()
    labels[:, :3] = -100
    output = model(rows, labels=labels)
    counted = (labels[:, 1:] != -100) & (rows[:, 1:] != 0)
    expected = -output.logits.log_softmax(-1).gather(-1, rows[:, 1:, :, None])[..., 0]
    torch.testing.assert_close(output.nats, expected.masked_fill(~counted, 0))
    torch.testing.assert_close(output.loss, expected[counted].mean())
    halves = [model(rows, labels=labels, num_items_in_batch=2 * counted.sum()).loss for _ in range(2)]
    torch.testing.assert_close(sum(halves), output.loss)


def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none():
    model, rows = make_model().train(), rows_of()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(rows, labels=rows, use_cache=False).loss.backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters()})
        model.gradient_checkpointing_enable()
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_saving_and_loading_is_bit_equal_through_the_auto_class(tmp_path):
    model, rows = make_model(), rows_of()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, pg.MidiEventForCausalLM)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(model(rows).logits, loaded.eval()(rows).logits)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_midi_event.MidiEventConfig",
        "AutoModelForCausalLM": "modeling_midi_event.MidiEventForCausalLM",
    }
    assert (tmp_path / "row_generation.py").is_file() and (tmp_path / "midi_event_legacy.py").is_file()


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": 10, "num_attention_heads": 4}, {"num_hidden_layers": 0}, {"attention_dropout": 1.0}]
)
def test_sizes_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValueError):
        pg.MidiEventConfig(**wrong)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="rows of 8 ids"):
        make_model()(torch.zeros(1, 4, 7, dtype=torch.long))
    assert "rows of 8 ids" in pg.JSBTokenizer().model_fault(make_model())
    assert TOKENIZER.model_fault(make_model()) is None


def test_what_is_allowed_is_drawn_however_unlikely_it_is():
    """The original masks probabilities, which are all 0 here, and divides by their sum."""
    logits = torch.full((1, 50), 1000.0)
    logits[0, 7:9] = -1000.0
    allowed = torch.zeros(1, 50, dtype=torch.bool)
    allowed[0, 7:9] = True
    draw = IdDraw(1.0, 0.98, 20, torch.Generator().manual_seed(0))
    assert {int(draw(logits.masked_fill(~allowed, -torch.inf))) for _ in range(50)} == {7, 8}


def test_music_is_continued_without_notes_that_nobody_hears():
    """The original may write a duration of 0, which its decoder leaves out, and a velocity of 0, which is a release."""
    model = make_model()
    with torch.no_grad():
        model.net_token.norm.weight.zero_()  # all ids are equally likely, but for those of a bias
        model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.zeros(len(TOKENIZER))))
        wanted = [*TOKENIZER.silent_ids, TOKENIZER.convert_tokens_to_ids("note")]
        model.lm_head.bias[wanted] = 20
    rows = model.generate(max_new_tokens=5, min_new_tokens=5, seed=0)[0]
    assert len(TOKENIZER.decode_notes(rows)) == 0  # what the model likes best
    result = pg.continue_notes(model, TOKENIZER, notes=10, prompt=some_notes(), seed=0)[0]
    assert len(result.new) >= 10 and (result.new["duration_tick"] > 0).all() and (result.new["velocity"] > 0).all()


def test_vocabulary_may_grow_in_both_nets():
    model = make_model()
    model.resize_token_embeddings(len(TOKENIZER) + 3)
    assert len(model.net.embed_tokens.weight) == len(model.net_token.embed_tokens.weight) == len(TOKENIZER) + 3
    rows = rows_of()
    rows[0, 2, 1] = len(TOKENIZER) + 2
    assert model(rows).logits.shape[-1] == model.config.vocab_size == len(TOKENIZER) + 3


def test_states_are_given_where_the_configuration_asks_for_them():
    model = make_model()
    model.config.output_hidden_states = True
    assert len(model(rows_of()).hidden_states) == 3
    with pytest.raises(ValueError, match="in the place of inputs_embeds"):
        model(rows_of(), inputs_embeds=torch.zeros(1, 8, 32))
