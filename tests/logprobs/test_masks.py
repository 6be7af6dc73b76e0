"""Trajectories: only tokens that count are in the log-prob and the KL. Packed rows and padded ones against single sequences."""

import pytest
import torch
from architectures import (
    MIXTURES,
    MODELS,
    PAD,
    TRAJECTORIES,
    UNFIT,
    A,
    B,
    assert_same,
    assert_same_gradients,
    build,
    fast,
    gradients,
    group_of,
    one_by_one,
    sequence_logprob,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from exoalign import collate
from exoalign.logprobs import engine, pack, rows, trie
from exoalign.logprobs.engine import compare_policies, completion_logprobs, shares_prefix
from exoalign.logprobs.passes import logprobs_in_passes

USER = "00000000"
# Turns A and B: stems of which each completion counts another part, equal tokens under other masks, one that ends in a stem.
STEMS = group_of(
    (3, 1, 4),
    (*A, *B, 2, 3),
    (*A, *B, 8, 4, 6),
    (*A, *B, 2, 3),
    (*A, 5),
    A,
    A,
    (*A, *B),
    (7,),
    masks=(
        "11110000" + USER + "11",
        "11111111" + USER + "101",
        USER + "11111111" + "00",
        USER + "1",
        "11111111",
        "01010000",
        "10000000" + "00000001",
        "1",
    ),
)
BATCHES = {
    "three turns": TRAJECTORIES,
    "stems": [STEMS],
    "both": [*TRAJECTORIES, STEMS],
    "equal tokens, masks of their own": [group_of((3, 1), A, A, A, masks=("11110000", "00001111", "10101010"))],
    "five turns": [group_of((3,), (*A, *B), (*B, 1, *A), masks=("1100011100110001", "11000110001100011"))],
}
EVERY_MODEL_AND_EVERY_BATCH = [
    *((kind, "both") for kind in MODELS),
    *(("llama", name) for name in BATCHES if name != "both"),
]


@pytest.mark.parametrize(("kind", "name"), EVERY_MODEL_AND_EVERY_BATCH)
def test_packed_and_padded_rows_are_single_sequences_in_values_and_gradients(kind, name, no_rows):
    groups = BATCHES[name]
    model, oracle, batch = fast(kind), build(kind), collate(groups, pad_id=PAD)
    truth = one_by_one(oracle, groups, 0.7)
    expected = gradients(oracle, truth)
    padded = rows.completion_logprobs(oracle, batch, temperature=0.7)
    assert_same(padded.detach(), truth.detach())
    assert_same_gradients(gradients(oracle, padded), expected)
    no_rows(model)
    packed = completion_logprobs(model, batch, temperature=0.7)
    assert_same(packed.detach(), truth.detach())
    assert_same_gradients(gradients(model, packed), expected)


@pytest.mark.parametrize("kind", [*MIXTURES, *UNFIT])
def test_in_float32_where_a_model_takes_no_float64_or_no_packed_rows(kind):
    model, oracle = (build(kind, dtype=torch.float32) for _ in range(2))
    groups = BATCHES["both"]
    values, truth = completion_logprobs(model, collate(groups, pad_id=PAD)), one_by_one(oracle, groups)
    assert_same(values.detach(), truth.detach(), 1e-5)
    assert_same_gradients(gradients(model, values), gradients(oracle, truth), 1e-4)


@pytest.mark.parametrize("most", [26, 40, 1000])
def test_passes_change_nothing(most):
    model, groups = fast("llama"), BATCHES["both"]
    values = logprobs_in_passes(model, collate(groups, pad_id=PAD), max_tokens=most)
    assert_same(values, one_by_one(build("llama"), groups).detach())


def comparison_by_hand(policy, reference, group, temperature):
    """Log-ratio, the KL of each step and k3, over whole distributions at every place, summed over the tokens that count."""
    ratios, kls, k3 = [], [], []
    for ids, mask in zip(group.completion_ids, group.completion_masks, strict=True):
        sequence = torch.tensor([[*group.prompt_ids, *ids]])
        log_p, log_r = (torch.log_softmax(m(sequence).logits[0] / temperature, -1) for m in (policy, reference))
        places = [(len(group.prompt_ids) + t - 1, ids[t]) for t in range(len(ids)) if mask[t]]
        ratios.append(sum(log_p[j, token] - log_r[j, token] for j, token in places))
        kls.append(sum((log_p[j].exp() * (log_p[j] - log_r[j])).sum() for j, _ in places))
        r = [(log_r[j, token] - log_p[j, token]).exp() for j, token in places]
        k3.append(sum((x - 1) - x.log() for x in r))
    return tuple(torch.stack(values)[None] for values in (ratios, kls, k3))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("group", [TRAJECTORIES[0], STEMS], ids=["three turns", "stems"])
@torch.no_grad()
def test_the_kl_is_over_the_tokens_that_count(kind, group, no_rows):
    policies, oracles = ([make(kind, seed=seed) for seed in (1, 2)] for make in (fast, build))
    batch = collate([group])
    expected = comparison_by_hand(*oracles, group, 0.7)
    for values, truth in zip(rows.compare_policies(*oracles, batch, temperature=0.7), expected, strict=True):
        assert_same(values, truth)
    no_rows(*policies)
    for values, truth in zip(compare_policies(*policies, batch, temperature=0.7), expected, strict=True):
        assert_same(values, truth)


class TestByHand:
    """One trajectory: assistant 2 6, user 5 3 5, assistant 8 9; 2, 6, 8 and 9 are predicted at the places 1, 2, 6 and 7."""

    PROMPT, IDS, MASK = (3, 1), (2, 6, 5, 3, 5, 8, 9), "1100011"
    PLACES, TOKENS = [1, 2, 6, 7], [2, 6, 8, 9]

    @pytest.fixture(params=["packed", "padded"])
    def way(self, request):
        return completion_logprobs if request.param == "packed" else rows.completion_logprobs

    def test_the_log_prob_is_the_sum_over_the_assistants_tokens(self, way):
        model = build("llama")
        with torch.no_grad():
            logits = model(torch.tensor([[*self.PROMPT, *self.IDS]])).logits[0]
            value = way(model, collate([group_of(self.PROMPT, self.IDS, masks=[self.MASK])]))
        log_p = torch.log_softmax(logits, -1)
        expected = log_p[1, 2] + log_p[2, 6] + log_p[6, 8] + log_p[7, 9]
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)

    def test_the_head_learns_from_the_assistants_tokens_only(self, way):
        # d log softmax(W h)[y] / dW = (onehot(y) - p) h^T, summed over the four places
        model = build("llama")
        with torch.no_grad():
            hidden = model.model(torch.tensor([[*self.PROMPT, *self.IDS]])).last_hidden_state[0, self.PLACES]
            p = torch.softmax(hidden @ model.lm_head.weight.T, -1)
            expected = (torch.nn.functional.one_hot(torch.tensor(self.TOKENS), p.shape[1]) - p).T @ hidden
        way(model, collate([group_of(self.PROMPT, self.IDS, masks=[self.MASK])])).sum().backward()
        assert_same(model.lm_head.weight.grad, expected)

    def test_the_users_tokens_are_seen_but_those_at_the_end_are_not(self, way):
        model = build("llama")

        def value(ids, mask):
            with torch.no_grad():
                return way(model, collate([group_of(self.PROMPT, ids, masks=[mask])])).item()

        assert value((2, 6, 5, 4, 5, 8, 9), self.MASK) != pytest.approx(value(self.IDS, self.MASK), rel=1e-3)
        first_turn = sequence_logprob(model, self.PROMPT, (2, 6)).item()
        assert value(self.IDS, "1100000") == pytest.approx(first_turn, rel=1e-12)
        assert value((2, 6, 5, 4, 5, 8, 7), "1100000") == pytest.approx(first_turn, rel=1e-12)

    def test_all_true_is_no_mask(self, way):
        model = build("llama")
        values = way(model, collate([group_of(self.PROMPT, self.IDS, masks=["1111111"])]))
        assert_same(values.detach(), one_by_one(build("llama"), [group_of(self.PROMPT, self.IDS)]).detach(), 1e-12)


def test_head_and_body_do_no_work_for_what_does_not_count(monkeypatch):
    model, seen, predicted = fast("llama"), [], []
    real = engine.token_logprobs
    monkeypatch.setattr(
        engine,
        "token_logprobs",
        lambda hidden, *rest, **more: predicted.append(len(hidden)) or real(hidden, *rest, **more),
    )
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    completion_logprobs(model, collate([STEMS]))
    # prompt, A, B, and the one or two tokens before the last that counts of the first two completions
    assert seen == [3 + 8 + 8 + 1 + 2]
    # of A and B every token counts for somebody; then 2 3 of the first, 8 6 of the second, 5 of the fourth, and 7
    assert predicted == [8 + 8 + 2 + 2 + 1 + 1]


PAIRS = {kind: (build(kind), build(kind)) for kind in ("llama", "mistral")}
FEW = st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=7)


@st.composite
def drawn_groups(draw):
    """Ragged groups of two tokens, so that stems and equal completions are frequent; some count wholly."""
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        completions = draw(st.lists(FEW, min_size=1, max_size=5))
        ids = [tuple(token for token, _ in completion) for completion in completions]
        masks = ["".join("01"[counts] for _, counts in completion) for completion in completions]
        masks = [mask if "1" in mask else mask[:-1] + "1" for mask in masks]
        prompt = draw(st.lists(st.integers(0, 1), min_size=1, max_size=4))
        groups.append(group_of(prompt, *ids, masks=masks if draw(st.integers(0, 3)) else None))
    return groups


@pytest.mark.parametrize(("kind", "saved"), [("llama", 1), ("mistral", 4)])
@settings(max_examples=20, deadline=None)
@given(groups=drawn_groups())
def test_any_trajectories(kind, saved, groups):
    model, oracle = PAIRS[kind]
    assert shares_prefix(model)
    batch = collate(groups, pad_id=PAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "SAVED", saved)
        patch.setattr(pack, "SYSTEM", saved)
        values = completion_logprobs(model, batch)
    truth = one_by_one(oracle, groups)
    assert_same(values.detach(), truth.detach())
    expected = gradients(oracle, truth)
    assert_same_gradients(gradients(model, values), expected)
    padded = rows.completion_logprobs(oracle, batch)
    assert_same(padded.detach(), truth.detach())
    assert_same_gradients(gradients(oracle, padded), expected)
