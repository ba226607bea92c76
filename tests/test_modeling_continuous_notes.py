"""Tests of the continuous-note model: proper probabilities, the failures of its forerunner, and its sampling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pianogen_hf.models.configuration_continuous_notes import ContinuousNotesConfig
from pianogen_hf.models.logistic_mixture import LogisticMixture, draw, velocity_cells
from pianogen_hf.models.modeling_continuous_notes import (
    DURATION,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    ContinuousNotesForCausalLM,
    ContinuousNotesHeads,
    ContinuousNotesModel,
)

BEGIN, END = 128, 129


def make_config(**overrides) -> ContinuousNotesConfig:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "num_mixtures": 6,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return ContinuousNotesConfig(**{**values, **overrides})


def make_model(seed: int = 0, **overrides) -> ContinuousNotesForCausalLM:
    torch.manual_seed(seed)
    model = ContinuousNotesForCausalLM(make_config(**overrides)).eval()
    # The small standard initialisation would hide mistakes: with larger weights, everything matters to everything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_pieces(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Chords, notes a quarter of a second apart, and rests with a heavy tail; `length` rows with both ends."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length)
    uniform = torch.rand(shape, generator=generator)
    beat = 0.25 * torch.exp(0.1 * torch.randn(shape, generator=generator))
    rest = 1.5 * torch.rand(shape, generator=generator).clamp(min=0.02) ** -0.4
    time_shift = torch.where(uniform < 0.55, 0.0, torch.where(uniform < 0.85, beat, rest))
    pitch = torch.tensor([48.0, 52.0, 55.0, 60.0])[torch.randint(4, shape, generator=generator)]
    velocity = torch.where(torch.rand(shape, generator=generator) < 0.5, 40.0, 90.0)
    duration = 0.4 * torch.exp(0.8 * torch.randn(shape, generator=generator))
    rows = torch.stack([time_shift, pitch, velocity, duration], dim=-1)
    rows[:, 0] = torch.tensor([0.0, BEGIN, 0.0, 0.0])
    rows[:, -1] = torch.tensor([0.0, END, 0.0, 0.0])
    return rows


def labels_of(rows: torch.Tensor) -> torch.Tensor:
    return rows[..., PITCH].long()


def train(loss_of, parameters, steps: int = 120) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 2 * (1 - step / steps))
        loss = loss_of(make_pieces(16, 34, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained() -> ContinuousNotesForCausalLM:
    torch.manual_seed(0)
    model = ContinuousNotesForCausalLM(make_config(num_hidden_layers=1))
    train(lambda rows: model(rows, labels=labels_of(rows)).loss, model.parameters())
    return model.eval()


@pytest.fixture(scope="module")
def sampled(trained) -> torch.Tensor:
    rows = trained.generate(max_new_tokens=32, min_new_tokens=32, num_return_sequences=64, seed=0)
    return rows[:, 1:].flatten(0, 1)


# What the old formulation got wrong ----------------------------------------------------------------------------------


def regressed_shifts(loss_function) -> torch.Tensor:
    """Time shifts predicted as the first version of this model did it: one number per note, fitted by regression."""
    torch.manual_seed(0)
    body, head = ContinuousNotesModel(make_config(num_hidden_layers=1)), nn.Linear(32, 1)

    def predict(rows):
        return head(body(rows).last_hidden_state[:, :-2]).squeeze(-1)

    train(
        lambda rows: loss_function(predict(rows), rows[:, 1:-1, TIME_SHIFT]), [*body.parameters(), *head.parameters()]
    )
    with torch.no_grad():
        return predict(make_pieces(64, 34, seed=-1))


def test_regression_to_the_mean_has_neither_chords_nor_rests():
    real = make_pieces(64, 34, seed=-1)[:, 1:-1, TIME_SHIFT]
    predicted = regressed_shifts(nn.functional.mse_loss)
    assert (real == 0).float().mean() > 0.5
    assert (predicted.abs() < 0.005).float().mean() < 0.05
    assert predicted.quantile(0.9) < 0.6 * real.quantile(0.9)


def test_regression_to_the_median_stands_still_and_goes_back_in_time():
    predicted = regressed_shifts(nn.functional.l1_loss)
    assert predicted.quantile(0.95) < 0.05
    assert predicted.min() < 0


class FirstV5(nn.Module):
    """The first version whole: cross-entropy of the pitch and three squared errors of raw values, point predictions."""

    def __init__(self):
        super().__init__()
        self.body, self.head = ContinuousNotesModel(make_config(num_hidden_layers=1)), nn.Linear(32, 131)

    def loss(self, rows):
        predicted, notes = self.head(self.body(rows).last_hidden_state[:, :-2]), rows[:, 1:-1]
        values = notes[..., [TIME_SHIFT, VELOCITY, DURATION]] / torch.tensor([1.0, 127.0, 1.0])
        pitch_loss = nn.functional.cross_entropy(predicted[..., :128].flatten(0, 1), notes[..., PITCH].long().flatten())
        return pitch_loss + 3 * nn.functional.mse_loss(predicted[..., 128:], values)

    @torch.no_grad()
    def generate(self, batch, length):
        rows = torch.tensor([0.0, BEGIN, 0.0, 0.0]).expand(batch, 1, 4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(length):
            predicted = self.head(self.body(rows).last_hidden_state[:, -1])
            pitch = draw(predicted[:, :128], 1.0, generator).float()
            time_shift, velocity, duration = predicted[:, 128:].unbind(-1)
            new = torch.stack([time_shift, pitch, 127 * velocity, duration], dim=-1)
            rows = torch.cat([rows, new[:, None]], dim=1)
        return rows[:, 1:].flatten(0, 1)


def test_the_first_v5_generates_neither_chords_nor_loud_and_soft_notes_nor_rests():
    """Trained as long and on the same music as ours, whose samples the next tests judge."""
    torch.manual_seed(0)
    model = FirstV5()
    train(model.loss, model.parameters())
    real, samples = make_pieces(64, 34, seed=-1)[:, 1:-1].flatten(0, 1), model.eval().generate(64, 32)
    assert (real[:, TIME_SHIFT] == 0).float().mean() > 0.5 and not (samples[:, TIME_SHIFT] == 0).any()
    assert samples[:, TIME_SHIFT].quantile(0.95) < 0.6 * real[:, TIME_SHIFT].quantile(0.95)
    near_modes = (samples[:, VELOCITY] - 40).abs().minimum((samples[:, VELOCITY] - 90).abs()) <= 5
    assert near_modes.float().mean() < 0.2  # all is as loud as the mean of loud and soft
    assert samples[:, DURATION].std() < 0.3 * real[:, DURATION].std()


def test_samples_have_chords_and_rests_as_the_music_has(sampled):
    real = make_pieces(64, 34, seed=-1)[:, 1:-1].flatten(0, 1)
    shift, real_shift = sampled[:, TIME_SHIFT], real[:, TIME_SHIFT]
    assert (shift >= 0).all()
    assert (shift == 0).float().mean().item() == pytest.approx((real_shift == 0).float().mean().item(), abs=0.06)
    assert shift.quantile(0.9).item() == pytest.approx(real_shift.quantile(0.9).item(), rel=0.15)
    assert shift.quantile(0.99).item() == pytest.approx(real_shift.quantile(0.99).item(), rel=0.4)
    # The gap between chords and notes stays empty, which a mixture with one broad hump would fill.
    assert ((shift > 0) & (shift < 0.1)).float().mean() < 0.03


def test_samples_have_the_music_s_pitches_velocities_and_durations(sampled):
    real = make_pieces(64, 34, seed=-1)[:, 1:-1].flatten(0, 1)
    assert torch.isin(sampled[:, PITCH], torch.tensor([48.0, 52.0, 55.0, 60.0])).float().mean() > 0.98
    near_modes = (sampled[:, VELOCITY] - 40).abs().minimum((sampled[:, VELOCITY] - 90).abs()) <= 5
    assert near_modes.float().mean() > 0.8
    for share in (0.1, 0.5, 0.9):
        expected = real[:, DURATION].quantile(share).item()
        assert sampled[:, DURATION].quantile(share).item() == pytest.approx(expected, rel=0.2)


def test_training_comes_near_the_entropy_of_what_can_be_known(trained):
    rows = make_pieces(64, 34, seed=-1)
    nats = trained(rows, labels=labels_of(rows)).nats[:, :-1].mean((0, 1))
    assert nats[PITCH].item() == pytest.approx(math.log(4), abs=0.05)
    # Normal in log-time with deviation 0.8 around 0.4 s, in cells of 10 ms.
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.8) + math.log(0.4) - math.log(0.01)
    assert nats[DURATION].item() == pytest.approx(entropy, abs=0.1)


def test_a_trained_model_ends_its_pieces(trained):
    # Pieces of 32 notes whose place in the piece is all that tells of the end.
    rows = make_pieces(16, 34, seed=-1)
    nats = trained(rows, labels=labels_of(rows)).nats
    assert nats[:, -1, TIME_SHIFT].mean() < -math.log(1 / 33)
    assert (nats[:, -1, TIME_SHIFT + 1 :] == 0).all()


# Probabilities that add up -------------------------------------------------------------------------------------------


def make_heads(**overrides) -> tuple[ContinuousNotesHeads, torch.Tensor]:
    """Heads and three hidden states, in float64."""
    heads = make_model(**overrides).heads.double()
    return heads, torch.randn(3, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def note(time_shift=0.0, pitch=60.0, velocity=64.0, duration=0.5) -> torch.Tensor:
    return torch.tensor([time_shift, pitch, velocity, duration], dtype=torch.float64)


def masses(heads, hidden, notes, column: int) -> torch.Tensor:
    """Probability of each note's field after each hidden state, shape (hidden states, notes)."""
    with torch.no_grad():
        nats = heads.nats(hidden[:, None].expand(-1, len(notes), -1), notes.expand(len(hidden), -1, -1))[0]
    return torch.exp(-nats[..., column])


@pytest.mark.parametrize("sampling_rate", [10, 100])
def test_masses_of_same_onset_of_all_shifts_and_of_the_end_sum_to_one(sampling_rate):
    heads, hidden = make_heads(sampling_rate=sampling_rate)
    steps = 500
    notes = torch.stack([note(time_shift=step / sampling_rate) for step in range(steps)] + [note(pitch=END)])
    events, mixture = heads.time_shift(hidden)
    tail_from = torch.full((3,), math.log((steps - 0.5) / sampling_rate), dtype=torch.float64)
    tail = torch.exp(events[:, 1] + mixture.log_mass(tail_from, torch.full_like(tail_from, 60.0)))
    total = masses(heads, hidden, notes, TIME_SHIFT).sum(-1) + tail
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def test_masses_of_all_durations_sum_to_one():
    heads, hidden = make_heads()
    notes = torch.stack([note(duration=step / 100) for step in range(1, 500)])
    mixture = heads.duration(_known_before_duration(heads, hidden, notes[0]))
    tail_from = torch.full((3,), math.log(4.995), dtype=torch.float64)
    tail = torch.exp(mixture.log_mass(tail_from, torch.full_like(tail_from, 60.0)))
    total = masses(heads, hidden, notes, DURATION).sum(-1) + tail
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def _known_before_duration(heads, hidden, row):
    embeds = heads.embed_time_shift(row[TIME_SHIFT]) + heads.embed_pitch(row[PITCH].long())
    return hidden + embeds + heads.embed_velocity(row[VELOCITY])


@pytest.mark.parametrize("velocity_step", [1, 4])
def test_masses_of_all_velocities_sum_to_one(velocity_step):
    heads, hidden = make_heads(velocity_step=velocity_step)
    one_of_each_cell = [max(velocity, 1) for velocity in range(0 if velocity_step > 1 else 1, 128, velocity_step)]
    notes = torch.stack([note(velocity=float(velocity)) for velocity in one_of_each_cell])
    total = masses(heads, hidden, notes, VELOCITY).sum(-1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def test_masses_of_all_pitches_sum_to_one():
    heads, hidden = make_heads()
    total = masses(heads, hidden, torch.stack([note(pitch=float(pitch)) for pitch in range(128)]), PITCH).sum(-1)
    assert torch.allclose(total, torch.ones_like(total))


def test_density_of_a_time_integrates_to_one_over_seconds():
    heads, hidden = make_heads()
    seconds = torch.logspace(-6, 6, 20_001, dtype=torch.float64)
    notes = note().repeat(len(seconds), 1)
    notes[:, TIME_SHIFT] = notes[:, DURATION] = seconds
    # Heads of the same hidden state for all values: what is drawn before the duration must not move it here.
    for embedding in (heads.embed_time_shift, heads.embed_velocity):
        nn.init.zeros_(embedding.proj.weight)
    with torch.no_grad():
        _, density_nats, _ = heads.nats(hidden[0].expand(len(seconds), -1), notes)
        later = heads.time_shift(hidden[0])[0][1].exp()
    for column, expected in ((TIME_SHIFT, later.item()), (DURATION, 1.0)):
        area = torch.trapezoid(torch.exp(-density_nats[:, column]), seconds)
        assert area.item() == pytest.approx(expected, rel=1e-3)


def test_mass_of_a_fine_cell_is_density_times_its_width():
    heads, hidden = make_heads(sampling_rate=1000)
    notes = torch.stack([note(time_shift=0.3, duration=0.7), note(time_shift=2.0, duration=5.0)]).repeat(3, 1)
    mass, density, _ = heads.nats(hidden.repeat_interleave(2, dim=0), notes)
    for column in (TIME_SHIFT, DURATION):
        assert torch.allclose(mass[:, column], density[:, column] + math.log(1000), atol=1e-2)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    lower=st.floats(-40, 40),
    widths=st.tuples(st.floats(1e-4, 30), st.floats(1e-4, 30)),
)
def test_masses_of_neighbouring_intervals_add_up_however_far_out(seed, lower, widths):
    raw = 3 * torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixture = LogisticMixture(raw, -3.0, 3.0)

    def log_mass(start, width):
        return mixture.log_mass(torch.tensor(start, dtype=torch.float64), torch.tensor(width, dtype=torch.float64))

    both = torch.logaddexp(log_mass(lower, widths[0]), log_mass(lower + widths[0], widths[1]))
    whole = log_mass(lower, sum(widths))
    assert torch.isfinite(whole) and whole <= 1e-9
    # In the tails a log-mass is -10,000: what counts there is its relative error.
    assert torch.allclose(both, whole, rtol=1e-6, atol=1e-6)


def test_samples_of_a_mixture_follow_its_masses():
    torch.manual_seed(0)
    mixture = LogisticMixture(torch.randn(9).double().expand(40_000, -1), -2.0, 2.0)
    samples = mixture.sample()
    for lower in (-2.0, -0.5, 0.5):
        expected = mixture.log_mass(torch.full((40_000,), lower).double(), torch.ones(40_000).double()).exp()[0]
        share = ((samples >= lower) & (samples < lower + 1)).double().mean()
        assert share.item() == pytest.approx(expected.item(), abs=0.012)


def test_velocity_cells_agree_with_rounding():
    velocity = torch.arange(1.0, 128)
    lower, width = velocity_cells(velocity, 1)
    inner = slice(1, -1)
    assert torch.allclose(16 * lower[inner], velocity[inner] - 0.5)
    assert torch.allclose(16 * width[inner], torch.ones(125))
    assert lower[0] < -10 and lower[-1] + width[-1] > 20


def test_drawing_at_temperature_zero_takes_the_likeliest():
    assert draw(torch.tensor([[0.1, 3.0, 0.2]]), temperature=0.0).tolist() == [1]


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mass", "density"])
def test_gradients_of_the_likelihood_are_right(which):
    heads, hidden = make_heads()
    notes = torch.stack(
        [
            note(),
            note(0.003, 0.0, 1.0, 0.004),
            note(0.01, 127.0, 127.0, 0.01),
            note(1.37, 60.0, 64.0, 12.0),
            note(25.0, 60.0, 2.0, 0.3),
            note(0.0, END, 0.0, 0.0),
        ]
    )
    hidden = hidden.repeat(2, 1).requires_grad_()
    names = ["time_shift_head.fc2.bias", "velocity_head.fc2.weight", "embed_velocity.proj.bias"]
    parameters = [heads.get_parameter(name) for name in names]

    def loss(hidden, *values):
        nats = torch.func.functional_call(
            _Call(heads), {f"heads.{n}": v for n, v in zip(names, values, strict=True)}, (hidden, notes)
        )
        counted = torch.where(notes[:, PITCH, None] == END, torch.tensor([1.0, 0, 0, 0]), torch.ones(4))
        return (nats[0 if which == "mass" else 1] * counted).sum()

    assert torch.autograd.gradcheck(loss, (hidden, *parameters), fast_mode=True)


class _Call(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, hidden, notes):
        return self.heads.nats(hidden, notes)


def test_loss_is_the_weighted_sum_of_the_nats_per_predicted_row():
    model, rows = make_model(loss_weights=[1.0, 2.0, 0.5, 0.0]), make_pieces(2, 9)
    output = model(rows, labels=labels_of(rows))
    expected = (output.nats * torch.tensor([1.0, 2.0, 0.5, 0.0])).sum() / 16
    assert torch.allclose(output.loss, expected)
    halved = model(rows, labels=labels_of(rows), num_items_in_batch=32).loss
    assert torch.allclose(halved, expected / 2)


def test_outputs_stand_in_their_declared_order():
    """Evaluation loops take them by place: loss, then what the metrics want."""
    rows = make_pieces(2, 9)
    output = make_model()(rows, labels=labels_of(rows))
    assert list(output)[:4] == ["loss", "logits", "nats", "density_nats"]
    assert [tuple(value.shape) for value in output.to_tuple()[:4]] == [(), (2, 8, 128), (2, 8, 4), (2, 8, 4)]


# Generation and configuration ----------------------------------------------------------------------------------------


def test_a_low_top_p_takes_the_likeliest_pitch():
    model, prompt = make_model(), make_pieces(1, 9)[:, :-1]
    rows = model.generate(prompt, max_new_tokens=1, min_new_tokens=1, top_p=1e-6, num_return_sequences=30, seed=0)
    hidden = model(prompt).last_hidden_state[:, -1].expand(30, -1)
    pitch = model.heads.pitch(hidden + model.heads.embed_time_shift(rows[:, -1, TIME_SHIFT])).argmax(-1)
    assert torch.equal(rows[:, -1, PITCH].long(), pitch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_mixtures": 0},
        {"sampling_rate": 0},
        {"likelihood": "mse"},
        {"loss_weights": [1.0]},
        {"loss_weights": [1.0, -1.0, 1.0, 1.0]},
        {"embedding_dropout": 1.0},
        {"num_attention_heads": 5},
    ],
)
def test_config_refuses_what_makes_no_model(wrong):
    with pytest.raises(ValueError):
        make_config(**wrong)


def test_model_wants_notes_or_embeddings():
    model = make_model()
    with pytest.raises(ValueError, match="either"):
        model.model()
    rows = make_pieces(1, 5)
    embeds = model.model.embed_notes(rows)
    assert torch.equal(model.model(inputs_embeds=embeds).last_hidden_state, model(rows).last_hidden_state)


def test_it_runs_under_dynamic_quantisation():
    model, pieces = make_model().eval(), make_pieces(2, 12)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not isinstance(small.model.embed_time_shift.proj, nn.Linear)
    exact, rounded = (each(input_values=pieces, labels=labels_of(pieces)) for each in (model, small))
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.2)
    assert small.generate(input_values=pieces[:, :4], max_new_tokens=4).shape[-1] == 4
