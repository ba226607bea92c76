"""Tests of the piano encoder: it can't see the answer, its bound bounds, and gaps are filled in place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import loosened
from torch import nn
from transformers import DynamicCache, LogitsProcessor, StaticCache

from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.models.configuration_piano_encoder import PianoEncoderConfig
from pianogen_hf.models.modeling_piano_encoder import (
    PianoEncoderForCausalLM,
    PianoEncoderForMaskedLM,
    PianoEncoderModel,
)
from pianogen_hf.models.order_agnostic import draw_mask, label_weights
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

VOCAB = 11
EVERY = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
BOTH = pytest.mark.parametrize("model_class", [PianoEncoderForCausalLM, PianoEncoderForMaskedLM])


def make_config(**overrides) -> PianoEncoderConfig:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return PianoEncoderConfig(**{**values, **overrides})


def make_model(model_class, implementation: str | None = None, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    is_causal = model_class is PianoEncoderForCausalLM
    model = model_class(make_config(**overrides, is_causal=is_causal, attn_implementation=implementation)).eval()
    return loosened(model, 0.2)


def make_ids(batch: int, length: int, seed: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


# --- the first V1 saw the answer; ours can't --------------------------------------------------------------------------


class _FirstV1(nn.Module):
    """The next token from an encoder without a causal mask: the token that is asked for stands in the input."""

    def __init__(self, config: PianoEncoderConfig):
        super().__init__()
        self.encoder = PianoEncoderModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.encoder(ids).last_hidden_state)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _masked_loss(model, ids):
    targets = torch.ones_like(ids, dtype=torch.bool)
    hidden = draw_mask(targets, torch.randint(1, ids.shape[1] + 1, (len(ids),)))
    return model(ids.masked_fill(hidden, model.config.mask_token_id), labels=ids).loss


def _loss_on_unseen_noise(model, loss_of, steps=150) -> float:
    """Train on random ids that are new in every step, and measure on others: below log(vocab) only what leaks helps."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, torch.randint(VOCAB, (32, 9))).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss_of(model.eval(), torch.randint(VOCAB, (2000, 9))))


def test_the_first_v1_predicted_pure_noise_because_it_saw_the_answer():
    model = _FirstV1(make_config(is_causal=False, num_hidden_layers=1, hidden_size=48))
    assert _loss_on_unseen_noise(model, lambda model, ids: model.loss(ids)) < 0.05


def test_no_honest_way_predicts_pure_noise():
    sizes = {"num_hidden_layers": 1, "hidden_size": 48}
    causal = PianoEncoderForCausalLM(make_config(**sizes))
    masked = PianoEncoderForMaskedLM(make_config(**sizes, is_causal=False))
    for model, loss_of in ((causal, lambda model, ids: model(ids, labels=ids).loss), (masked, _masked_loss)):
        loss = _loss_on_unseen_noise(model, loss_of)
        assert math.log(VOCAB) - 0.02 < loss < math.log(VOCAB) + 0.1


def test_each_head_refuses_the_attention_of_the_other():
    with pytest.raises(ValueError, match="is_causal=True"):
        PianoEncoderForCausalLM(make_config(is_causal=False))
    with pytest.raises(ValueError, match="is_causal=False"):
        PianoEncoderForMaskedLM(make_config())


@EVERY
def test_future_tokens_do_not_change_past_logits(implementation):
    model = make_model(PianoEncoderForCausalLM, implementation)
    ids = make_ids(2, 12)
    with torch.no_grad():
        whole = model(ids).logits
        for changed in range(1, 12):
            other = torch.cat([ids[:, :changed], make_ids(2, 12 - changed, seed=7)], dim=1)
            torch.testing.assert_close(model(other).logits[:, :changed], whole[:, :changed], atol=1e-5, rtol=1e-5)


@EVERY
def test_a_masked_model_looks_both_ways_and_a_causal_one_does_not(implementation):
    for model_class, is_causal in ((PianoEncoderForCausalLM, True), (PianoEncoderForMaskedLM, False)):
        model = make_model(model_class, implementation, num_hidden_layers=1)
        embeds = model.model.embed_tokens(make_ids(1, 7)).detach().requires_grad_()
        hidden_states = model.model(inputs_embeds=embeds).last_hidden_state
        for place in range(7):
            (gradient,) = torch.autograd.grad(hidden_states[0, place].square().sum(), embeds, retain_graph=True)
            reached = (gradient[0].abs().sum(-1) > 0).tolist()
            assert reached == [not is_causal or other <= place for other in range(7)]


def test_a_label_that_the_model_sees_has_no_loss():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(2, 8)
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, 2:5] = hidden[1, 6] = True
    output = model(ids.masked_fill(hidden, VOCAB), labels=ids)
    nats = -output.logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    expected = (8 / 3 * nats[0, 2:5].sum() + 8 * nats[1, 6]) / 16
    torch.testing.assert_close(output.loss, expected)
    assert (output.label_weights[~hidden] == 0).all()
    only_hidden = model(ids.masked_fill(hidden, VOCAB), labels=ids.masked_fill(~hidden, -100)).loss
    torch.testing.assert_close(only_hidden, nats[hidden].mean())  # the usual labels give the usual loss
    assert model(ids, labels=ids).loss == 0


def test_logits_are_of_the_tokenizer_s_ids_and_never_of_the_mask():
    model = make_model(PianoEncoderForMaskedLM)
    assert model.config.mask_token_id == VOCAB
    assert model(torch.full((1, 4), VOCAB)).logits.shape == (1, 4, VOCAB)
    model.resize_token_embeddings(VOCAB + 3)
    assert model.config.mask_token_id == VOCAB + 3
    assert model(torch.full((1, 4), VOCAB + 3)).logits.shape == (1, 4, VOCAB + 3)


# --- padding, caches, generate ----------------------------------------------------------------------------------------


@EVERY
@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model_class, implementation, side):
    model = make_model(model_class, implementation)
    ids = make_ids(3, 11)
    ids[:, 5] = 4 if model_class is PianoEncoderForCausalLM else VOCAB
    with torch.no_grad():
        for row, padding in enumerate((0, 3, 5)):
            mask = torch.ones_like(ids)
            kept = slice(padding, None) if side == "left" else slice(0, 11 - padding)
            mask[row] = 0
            mask[row, kept] = 1
            batch = model(ids.masked_fill(mask == 0, 0), attention_mask=mask).logits
            alone = model(ids[row : row + 1, kept]).logits[0]
            torch.testing.assert_close(batch[row, kept], alone, atol=1e-5, rtol=1e-5)


@EVERY
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize("chunks", [[1] * 12, [5] + [1] * 7, [1, 4, 2, 5]])
def test_cached_equals_uncached(implementation, cache_class, chunks):
    model = make_model(PianoEncoderForCausalLM, implementation)
    ids = make_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    cache = cache_class(config=model.config, **({} if cache_class is DynamicCache else {"max_cache_len": 17}))
    logits, start = [], 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        for size in chunks:
            stop = start + size
            output = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
            logits.append(output.logits)
            start = stop
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"do_sample": True}, {"num_beams": 3}, {"cache_implementation": "static", "do_sample": False}]
)
def test_generate_gives_the_same_with_and_without_cache_and_padding(arguments):
    model = make_model(PianoEncoderForCausalLM, eos_token_id=None)
    ids = make_ids(1, 6)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(8) >= 2).long()[None]
    results = []
    without_cache = {**arguments, "use_cache": False, "cache_implementation": None}
    for prompt, options in ((ids, arguments), (ids, without_cache), (padded, {**arguments, "attention_mask": mask})):
        torch.manual_seed(3)
        results.append(model.generate(prompt, max_new_tokens=9, **options)[:, prompt.shape[1] :])
    assert results[0].shape == (1, 9)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@BOTH
def test_more_tokens_than_positions_are_refused(model_class):
    model = make_model(model_class)
    with pytest.raises(ValueError, match="33 tokens are more than the 32 positions"):
        model(make_ids(1, 33))


# --- the bound --------------------------------------------------------------------------------------------------------


def _hidden_nats(model, ids, hidden):
    """Nats of every id, given what is not hidden."""
    holed = ids.masked_fill(torch.tensor(hidden), model.config.mask_token_id)
    with torch.no_grad():
        return -model(holed[None]).logits[0].log_softmax(-1).gather(-1, ids[:, None])[:, 0].double()


def _nats_by_order(model, ids):
    """For each order, the nats of writing the ids one by one in it."""
    length = len(ids)
    for order in itertools.permutations(range(length)):
        yield sum(
            _hidden_nats(model, ids, [place in order[step:] for place in range(length)])[order[step]]
            for step in range(length)
        )


def test_the_expected_loss_is_exactly_the_mean_over_all_orders():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(1, 3)[0]
    by_order = torch.stack(list(_nats_by_order(model, ids)))
    expected_loss = 0.0
    for hidden in itertools.product([False, True], repeat=3):
        if k := sum(hidden):
            with torch.no_grad():
                loss = model(ids.masked_fill(torch.tensor(hidden), VOCAB)[None], labels=ids[None]).loss.double()
            expected_loss += 3 * loss / (3 * math.comb(3, k))  # k is uniform, and so is the place
    torch.testing.assert_close(expected_loss, by_order.mean(), atol=1e-5, rtol=1e-5)
    likelihood = -torch.logsumexp(-by_order, 0) + math.log(6)
    assert likelihood < by_order.mean() - 1e-3  # a bound of the nats of the mixture of all orders


def test_the_mixture_of_all_orders_is_a_distribution():
    model = make_model(PianoEncoderForMaskedLM, vocab_size=3, eos_token_id=None)
    pieces = [torch.tensor(ids) for ids in itertools.product(range(3), repeat=3)]
    total = sum(torch.exp(-torch.stack(list(_nats_by_order(model, ids)))).mean() for ids in pieces)
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_estimate_of_the_bound_is_unbiased_and_scores_only_targets():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(1, 4)
    targets = torch.tensor([[False, True, True, True]])
    expected = 0.0
    for order in itertools.permutations((1, 2, 3)):
        for step in range(3):
            hidden = [place in order[step:] for place in range(4)]
            expected += _hidden_nats(model, ids[0], hidden)[order[step]] / 6
    draws = model.order_agnostic_nats(
        ids.repeat(600, 1), targets.repeat(600, 1), num_draws=3, generator=torch.Generator().manual_seed(0)
    )
    means = draws.mean(1)
    assert abs(means.mean() - expected) < 4 * means.std() / 600**0.5
    assert means.std() < draws.flatten().std() / 3**0.5  # less noise than independent draws


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 99))
def test_a_mask_hides_as_many_targets_as_asked_and_weights_sum_to_the_labels(length, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(5, length, generator=generator) < 0.7
    num_masked = (targets.sum(-1) * torch.rand(5, generator=generator)).long() + 1
    hidden = draw_mask(targets, num_masked, generator)
    assert not (hidden & ~targets).any()
    assert torch.equal(hidden.sum(-1), torch.minimum(num_masked, targets.sum(-1)))
    labels = torch.zeros_like(targets, dtype=torch.long).masked_fill(~targets, -100)
    torch.testing.assert_close(label_weights(hidden, labels).sum(-1), targets.sum(-1).float())


# --- refilling --------------------------------------------------------------------------------------------------------


REFILL = pytest.mark.parametrize(
    "options", [{}, {"order": "random"}, {"steps": 1}, {"steps": 999}, {"temperature": 0.5, "top_p": 0.8}]
)


@REFILL
def test_filling_gaps_leaves_all_other_ids_as_they_are(options):
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(4, 20)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    mask[1], mask[2] = False, True
    filled = model.refill(ids, mask, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(filled[~mask], ids[~mask])
    assert (filled[mask] >= 3).all() and (filled[mask] < VOCAB).all()  # no special id, no mask
    assert not torch.equal(filled[mask], ids[mask])


@REFILL
def test_what_stood_in_a_gap_does_not_matter_and_a_seed_repeats_it(options):
    model = make_model(PianoEncoderForMaskedLM)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 3:9] = True
    ids, others = make_ids(2, 12), make_ids(2, 12)
    others[mask] = 7
    results = [
        model.refill(each, mask, generator=torch.Generator().manual_seed(seed), **options)
        for each, seed in ((ids, 5), (others, 5), (ids, 6))
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_refilling_leaves_padding_alone_and_does_not_depend_on_it():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(1, 9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    filled = model.refill(padded, padded >= 0, attention_mask=(torch.arange(12) >= 3).long()[None])
    assert (filled[:, :3] == 0).all() and (filled[:, 3:] >= 3).all()
    greedy = {"temperature": 1e-6, "steps": 1}  # one step takes the likeliest ids: no chance is left
    alone = model.refill(ids, mask, **greedy)
    attention_mask = torch.tensor([[0] * 3 + [1] * 9])
    with_padding = model.refill(padded, torch.cat([mask[:, :3] * 0, mask], 1), attention_mask=attention_mask, **greedy)
    assert torch.equal(with_padding[:, 3:], alone)


def test_refilling_in_random_order_draws_from_the_order_agnostic_model():
    """The law of what is refilled, on pieces of two ids out of two, against all orders."""
    model = make_model(PianoEncoderForMaskedLM, vocab_size=5)
    count = 4000
    ids = torch.zeros(count, 2, dtype=torch.long)
    filled = model.refill(ids, ids == 0, order="random", generator=torch.Generator().manual_seed(0))
    pieces = list(itertools.product((3, 4), repeat=2))

    def probability(piece):
        """As `_nats_by_order`, among the two ids that may be written."""
        total = 0.0
        for order in ((0, 1), (1, 0)):
            holed, chance = torch.tensor([5, 5]), 1.0
            for place in order:
                with torch.no_grad():
                    chance *= float(model(holed[None]).logits[0, place, 3:].softmax(-1)[piece[place] - 3])
                holed[place] = piece[place]
            total += chance / 2
        return total

    for piece in pieces:
        share = float((filled == torch.tensor(piece)).all(-1).float().mean())
        expected = probability(piece)
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-6


class _Ascending(LogitsProcessor):
    """A grammar in which no id is smaller than the one before it."""

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == 0:
            return scores
        assert (input_ids < VOCAB).all()  # a beginning never has holes
        return scores.masked_fill(torch.arange(VOCAB) < input_ids[:, -1:], -math.inf)


def test_a_logits_processor_has_the_last_word_in_a_gap():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(6, 14).sort(-1).values
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 4:9] = True
    mask[3] = False
    filled = model.refill(ids, mask, logits_processor=_Ascending(), generator=torch.Generator().manual_seed(0))
    assert (filled[:, 1:9] >= filled[:, :8]).all()
    assert torch.equal(filled[~mask], ids[~mask])
    free = model.refill(ids, mask, generator=torch.Generator().manual_seed(0))
    assert not (free[:, 1:9] >= free[:, :8]).all()


@pytest.mark.parametrize("tokenizer", [JSBTokenizer(), RemiTokenizer()], ids=lambda tokenizer: type(tokenizer).__name__)
def test_music_from_nothing_and_in_a_gap_keeps_to_the_grammar(tokenizer):
    model = make_model(PianoEncoderForMaskedLM, vocab_size=len(tokenizer), max_position_embeddings=64)
    ids = torch.zeros(2, 48, dtype=torch.long)
    ids[:, 0] = tokenizer.bos_token_id
    grammar = GrammarLogitsProcessor(tokenizer, [[], []])
    piece = model.refill(ids, ids == 0, logits_processor=grammar, generator=torch.Generator().manual_seed(0))
    gap = (torch.arange(48) >= 20) & (torch.arange(48) < 30)
    filled = model.refill(piece, gap.expand(2, -1), logits_processor=grammar)
    assert torch.equal(filled[:, ~gap], piece[:, ~gap])
    for row, last in [(row, 48) for row in piece] + [(row, 30) for row in filled]:
        for place in range(1, last):
            assert tokenizer.allowed_next(row[:place])[row[place]]
        assert len(tokenizer.decode_notes(row)) > 0


def test_bad_wishes_are_refused():
    model = make_model(PianoEncoderForMaskedLM)
    ids = make_ids(1, 6)
    for options, message in (
        ({"order": "best"}, "confidence or random"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"top_p": 1.5}, "top_p"),
    ):
        with pytest.raises(ValueError, match=message):
            model.refill(ids, ids > 0, **options)
    with pytest.raises(ValueError, match="shape"):
        model.refill(ids, torch.ones(1, 5, dtype=torch.bool))


def test_it_learns_to_fill_a_gap_from_both_sides():
    torch.manual_seed(0)
    model = PianoEncoderForMaskedLM(make_config(is_causal=False)).train()
    # The middle is the sum of both neighbours: neither side alone tells it.
    outer = torch.randint(0, 4, (64, 2), generator=torch.Generator().manual_seed(0))
    ids = torch.stack([outer[:, 0] + 3, outer.sum(1) + 3, outer[:, 1] + 3], dim=1)
    mask = torch.tensor([[False, True, False]]).expand(64, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(ids.masked_fill(mask, VOCAB), labels=ids.masked_fill(~mask, -100)).loss.backward()
        optimizer.step()
    filled = model.eval().refill(ids, mask, generator=torch.Generator().manual_seed(0))
    assert (filled == ids).float().mean() > 0.97


# --- training, saving, loading ----------------------------------------------------------------------------------------


@BOTH
def test_loss_over_two_micro_batches_equals_loss_over_the_batch(model_class):
    model = make_model(model_class)
    ids = make_ids(4, 7)
    labels = ids.clone()
    labels[0, 2:] = -100  # unequal numbers of labels: a mean of means would differ
    labels[:, 0] = -100
    if model_class is PianoEncoderForMaskedLM:
        ids[:, 1::2] = VOCAB
    whole = model(ids, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    parts = [model(ids[s], labels=labels[s], num_items_in_batch=count).loss for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@EVERY
@BOTH
def test_every_parameter_gets_a_finite_gradient_in_spite_of_padding(model_class, implementation):
    model = make_model(model_class, implementation, hidden_dropout=0.1, attention_dropout=0.1).train()
    ids = make_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    labels = ids.masked_fill(mask == 0, -100)
    if model_class is PianoEncoderForMaskedLM:
        ids[:, 6] = VOCAB
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@BOTH
def test_gradient_checkpointing_gives_equal_gradients(model_class):
    model = make_model(model_class).train()
    ids = make_ids(2, 9)
    hidden_ids = ids.clone()
    if model_class is PianoEncoderForMaskedLM:
        hidden_ids[:, 3:6] = VOCAB
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(hidden_ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients[0], gradients[1])


@BOTH
@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_saving_and_loading_is_bit_equal(tmp_path, model_class, tie_word_embeddings):
    model = make_model(model_class, tie_word_embeddings=tie_word_embeddings)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.is_causal == model.config.is_causal
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, loaded.state_dict()[name]), name
    ids = make_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.eval()(ids).logits)


@BOTH
def test_the_base_model_of_a_checkpoint_attends_as_the_head_did(tmp_path, model_class):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    base = PianoEncoderModel.from_pretrained(tmp_path).eval()
    ids = make_ids(1, 6)
    with torch.no_grad():
        hidden = base(ids).last_hidden_state
        torch.testing.assert_close(hidden @ base.embed_tokens.weight.T, model(ids).logits)


def test_a_causal_checkpoint_can_begin_a_masked_model_but_not_pass_for_one(tmp_path):
    make_model(PianoEncoderForCausalLM).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_causal=False"):
        PianoEncoderForMaskedLM.from_pretrained(tmp_path)
    loaded, info = PianoEncoderForMaskedLM.from_pretrained(tmp_path, is_causal=False, output_loading_info=True)
    assert list(info["missing_keys"]) == ["mask_embedding"]
    assert 0 < loaded.mask_embedding.abs().max() < 0.2


def test_default_sizes_are_those_of_v1():
    config = PianoEncoderConfig()
    with torch.device("meta"):
        model = PianoEncoderForCausalLM(config)
    layer = 4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    assert sum(p.numel() for p in model.parameters()) == (3000 + 512) * 512 + 6 * layer + 2 * 512
    assert (config.num_attention_heads, config.hidden_dropout) == (8, 0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 25}, "multiple of num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be at least 1"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\)"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)
