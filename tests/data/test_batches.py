"""Batches as a pure function of the step, and what is in them."""

from collections import Counter

import pytest
import torch

from hn.config import DataConfig
from hn.data.batches import Batches, Layout
from hn.data.cache import contexts
from hn.data.cache.contexts import Contexts
from hn.data.cache.latents import Latents
from hn.data.cache.store import Store
from hn.data.pictures.decoding import open_picture
from hn.data.pictures.framing import Framing, to_tensor
from hn.data.pictures.images import examples, read_folder
from hn.data.words.prompts import Prompts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.text_encoder import AT_ONCE
from hn.errors import NumericsError
from tests import caches, golden

LIMIT = 2000
BUCKETS = golden.read_json("buckets.json")
COUNT = 5
CAPTIONS = [f"picture {i}, red, large" for i in range(COUNT)]
TEMPLATE = ["[filewords]", "a [name]: [filewords]"]


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


@pytest.fixture(scope="module")
def make_latents(tmp_path_factory):
    def make(variants=3, sampling="random", seed=0) -> Latents:
        draw = torch.Generator().manual_seed(1)
        mean = torch.randn((COUNT, variants, 4, 2, 2), generator=draw)
        moments = torch.stack([mean, torch.ones_like(mean)], dim=2)
        weights = torch.rand((COUNT, variants, 1, 2, 2), generator=draw)
        return caches.make(tmp_path_factory.mktemp("cache"), moments, sampling, seed, weights)

    return make


def make_prompts(seed=0, **settings) -> Prompts:
    return Prompts(
        [[caption] for caption in CAPTIONS], TEMPLATE, "cat", DataConfig(**settings), seed
    )


@pytest.fixture(scope="module")
def make_batches(base, make_latents):
    def make(seed=0, *, latents=None, **layout) -> Batches:
        layout = Layout(**{"batch_size": 2, "accumulation": 1, **layout})
        latents = latents or make_latents(seed=seed)
        return Batches(latents, make_prompts(seed), Contexts(base), layout, seed)

    return make


def assert_equal(batch, other):
    assert (batch.step, batch.slots, batch.pictures, batch.prompts) == (
        other.step,
        other.slots,
        other.pictures,
        other.prompts,
    )
    assert torch.equal(batch.latents, other.latents)
    assert torch.equal(batch.loss_weights, other.loss_weights)
    assert torch.equal(batch.condition.context, other.condition.context)


def drawn(batches, steps):
    return [p for step in range(steps) for batch in batches.at(step) for p in batch.pictures]


@pytest.mark.parametrize("layout", [{}, {"batch_size": 3, "accumulation": 4}, {"batch_size": 7}])
def test_every_epoch_uses_every_picture_once(make_batches, layout):
    batches = make_batches(**layout)
    stream = drawn(batches, 12)
    epochs = [stream[i : i + COUNT] for i in range(0, len(stream) - COUNT + 1, COUNT)]
    assert len(epochs) >= 4
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(
    "case", BUCKETS["sampler"], ids=lambda c: f"{c['images']}-{c['batch_size']}"
)
def test_an_epoch_repeats_nothing_as_in_the_web_ui(base, tmp_path, case):
    """The web UI drops what does not fill a batch; our epoch goes on to the last picture."""
    count, size = case["images"], case["batch_size"]
    latents = caches.make(tmp_path, torch.zeros(count, 1, 2, 4, 2, 2))
    prompts = Prompts([["a"]] * count, ["[filewords]"], "", DataConfig(), 0)
    layout = Layout(batch_size=size, accumulation=1)
    stream = drawn(Batches(latents, prompts, Contexts(base), layout, 0), 4 * count)
    recorded = [epoch for seed in case["epochs"] for epoch in seed["epochs"]]
    for epoch in range(3):
        ours = stream[epoch * count : (epoch + 1) * count]
        assert sorted(ours) == list(range(count))
        for theirs in recorded:
            full = ours[: theirs["n_batches"] * size]
            assert len(set(full)) == theirs["distinct_images"]
            assert len(full) - len(set(full)) == theirs["repeated_images"]


def test_another_seed_gives_another_order(make_batches):
    assert drawn(make_batches(), 10) != drawn(make_batches(seed=1), 10)


def test_a_step_does_not_depend_on_what_was_asked_before(make_batches):
    used = make_batches()
    forwards = [next(used.at(step)) for step in range(8)]
    for step in (7, 2, 5, 0):
        assert_equal(next(used.at(step)), forwards[step])
    assert_equal(next(make_batches().at(6)), forwards[6])


def test_two_processes_draw_what_one_would_with_accumulation(make_batches):
    alone = make_batches(accumulation=2)
    together = [make_batches(rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(6):
        expected = list(alone.at(step))
        found = [batch for process in together for batch in process.at(step)]
        assert [batch.slots for batch in found] == [[0, 1], [2, 3]]
        for batch, other in zip(found, expected, strict=True):
            assert_equal(batch, other)


def test_one_large_batch_is_dealt_out_slot_by_slot(make_batches):
    large = next(make_batches(batch_size=4).at(3))
    small = list(make_batches(batch_size=1, accumulation=4).at(3))
    assert large.pictures == [picture for batch in small for picture in batch.pictures]
    assert torch.equal(large.latents, torch.cat([batch.latents for batch in small]))
    assert torch.equal(large.loss_weights, torch.cat([batch.loss_weights for batch in small]))


def test_slots_of_all_processes_and_micro_batches_are_the_global_batch():
    layouts = [Layout(batch_size=2, accumulation=3, rank=rank, world_size=4) for rank in range(4)]
    slots = [slot for layout in layouts for m in range(3) for slot in layout.slots(m)]
    assert sorted(slots) == list(range(layouts[0].global_batch)) == list(range(24))
    # the processes share each micro-batch, so that its slots are the same for every world size
    assert layouts[1].slots(2) == [18, 19]


def test_every_variant_is_drawn(make_batches, make_latents):
    latents = make_latents(variants=3, sampling="deterministic")
    means, weights_of = caches.means(latents), caches.all_weights(latents)
    variants = Counter()
    for step in range(30):
        batch = next(make_batches(latents=latents).at(step))
        drawn = zip(batch.pictures, batch.latents, batch.loss_weights, strict=True)
        for picture, latent, weights in drawn:
            matches = [v for v in range(3) if torch.equal(means[picture, v], latent)]
            variants.update(matches)
            assert torch.equal(weights_of[picture, matches[0]], weights)
    assert sum(variants.values()) == 60
    assert min(variants[v] for v in range(3)) >= 8  # 20 are expected, three errors are 11


def test_the_context_is_that_of_the_prompts(base, make_batches):
    batch = next(make_batches().at(0))
    expected = Condition.join(base.encode_prompts(batch.prompts))
    torch.testing.assert_close(batch.condition.context, expected.context)


def test_deterministic_latents_are_the_mean(make_latents):
    latents = make_latents(sampling="deterministic")
    assert torch.equal(caches.sample(latents, 2, 1, 7, 0), latents.moments(2, 1)[0])


def test_latents_sampled_once_stay_for_the_whole_run(make_latents):
    latents = make_latents(sampling="once")
    first = caches.sample(latents, 2, 1, 0, 0)
    assert torch.equal(caches.sample(latents, 2, 1, 99, 3), first)
    assert not torch.equal(first, latents.moments(2, 1)[0])
    noise = [
        caches.sample(latents, p, v, 0, 0) - latents.moments(p, v)[0] for p, v in ((2, 1), (2, 0))
    ]
    assert not torch.allclose(*noise)
    assert not torch.equal(caches.sample(make_latents(sampling="once", seed=1), 2, 1, 0, 0), first)


@pytest.mark.parametrize(("sampling", "reads"), [("once", 2), ("deterministic", 2), ("random", 4)])
def test_latents_that_never_change_are_read_once(make_latents, monkeypatch, sampling, reads):
    latents, read = make_latents(sampling=sampling), []
    stack = Store.stack
    monkeypatch.setattr(Store, "stack", lambda own, keys: [read.extend(keys), stack(own, keys)][1])
    first = latents.samples([2, 2, 3], [1, 1, 0], 5, [0, 0, 1])
    again = latents.samples([3, 2], [0, 1], 5, [1, 0])
    assert torch.equal(first[[2, 0]], again)
    assert len(read) == reads


def test_no_more_latents_are_held_than_may_be(make_latents, monkeypatch):
    monkeypatch.setattr("hn.data.cache.latents.HELD", 1)
    latents = make_latents(sampling="once")
    samples = [caches.sample(latents, picture, 0, 0, 0) for picture in (0, 1, 2, 1)]
    assert torch.equal(samples[1], samples[3])
    assert len(latents._held) == 1


def test_random_latents_differ_by_step_and_slot_and_have_the_right_spread(make_latents):
    latents = make_latents(sampling="random")
    samples = torch.stack([caches.sample(latents, 2, 1, step, 0) for step in range(400)])
    assert torch.equal(samples[5], caches.sample(latents, 2, 1, 5, 0))
    assert not torch.equal(samples[5], caches.sample(latents, 2, 1, 5, 1))
    torch.testing.assert_close(samples.mean(0), latents.moments(2, 1)[0], rtol=0, atol=0.25)
    assert samples.std(0).mean().item() == pytest.approx(1, abs=0.05)


def test_prompts_are_filled_lines_of_the_template():
    prompts = make_prompts()
    found = {prompts.draw(3, step, 0) for step in range(20)}
    assert found == {CAPTIONS[3], f"a cat: {CAPTIONS[3]}"}


def test_prompts_are_a_function_of_step_and_slot():
    settings = {"shuffle_tags": True, "tag_dropout": 0.5}
    first, second = make_prompts(**settings), make_prompts(**settings)
    forwards = [first.draw(1, step, 0) for step in range(20)]
    assert [second.draw(1, step, 0) for step in reversed(range(20))] == forwards[::-1]
    assert len(set(forwards)) > 5
    assert [first.draw(1, step, 1) for step in range(20)] != forwards


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 0, 0), (0.3, 70, 170), (1.0, 400, 400)])
def test_caption_dropout_empties_that_share(chance, low, high):
    prompts = make_prompts(caption_dropout=chance)
    assert low <= [prompts.draw(0, step, 0) for step in range(400)].count("") <= high


def test_all_prompts_are_those_that_can_be_drawn():
    prompts = make_prompts(caption_dropout=0.5)
    every = {prompts.draw(p, step, 0) for p in range(COUNT) for step in range(40)}
    assert set(prompts.all(LIMIT)) == every
    assert len(prompts.all(LIMIT)) == 2 * COUNT + 1


@pytest.mark.parametrize("settings", [{"shuffle_tags": True}, {"tag_dropout": 0.1}])
def test_prompts_that_are_drawn_anew_are_not_listed(settings):
    assert make_prompts(**settings).all(LIMIT) is None


def test_too_many_prompts_are_not_listed():
    captions = [[str(i)] for i in range(LIMIT + 1)]
    assert Prompts(captions, ["[filewords]"], "", DataConfig(), 0).all(LIMIT) is None


@pytest.fixture
def encode(pictures, tmp_path):
    def encode_now(base, **settings):
        dataset = read_folder(pictures, "stop", setting="train_data_dir")
        config = DataConfig(resolution=(16,), **settings)
        first = open_picture(next(examples(dataset, "reading")))
        return caches.encode(tmp_path, dataset, base, config), first

    return encode_now


@pytest.mark.parametrize(
    ("settings", "variants"),
    [
        ({}, 1),
        ({"random_flip": True}, 2),
        ({"random_crop": True, "crops_per_image": 3}, 3),
        ({"random_crop": True, "crops_per_image": 3, "random_flip": True}, 6),
    ],
)
def test_crops_and_flips_are_variants(base, encode, settings, variants):
    latents, first = encode(base, **settings)
    means = caches.means(latents)
    assert means.shape == (6, variants, 4, 8, 8)
    assert latents.variants == variants
    if not settings.get("random_crop"):
        pixels = to_tensor(first, Framing(size=(16, 16)).frame(first.size))
        for variant, picture in enumerate([pixels, pixels.flip(-1)][:variants]):
            expected = base.encode_images(picture[None]).mean[0]
            torch.testing.assert_close(means[0, variant], expected)


def test_random_crops_differ_and_follow_from_the_seed(base, encode):
    settings = {"random_crop": True, "crops_per_image": 3}
    first, again = (caches.means(encode(base, **settings)[0]) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0, 0], first[0, 1])


def test_a_picture_whose_latents_are_not_finite_is_named(model, encode):
    broken = BaseModel.load(str(model))
    with torch.no_grad():
        broken.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"0\.png: the autoencoder's latents are not finite"):
        encode(broken)


def test_each_prompt_is_encoded_once(base):
    known, rows = Contexts(base), []
    hook = base.text_encoder.model.register_forward_hook(lambda *call: rows.append(len(call[1][0])))
    known.encode(["a", "b", "a"])
    stacked = known.stack(["b", "c", "b"])
    hook.remove()
    assert rows == [AT_ONCE, AT_ONCE]  # always, so that none changes another
    expected = Condition.join(base.encode_prompts(["b", "c"])).context
    torch.testing.assert_close(stacked.context, expected[[0, 1, 0]])


def test_old_contexts_are_forgotten_and_encoded_again(base, monkeypatch):
    """Shuffled tags make ever new prompts; memory must not grow with them."""
    monkeypatch.setattr(contexts, "KEPT", 3 * base.text_encoder.context_nbytes)
    kept = Contexts(base)
    first = kept.stack(["a", "b"])
    kept.stack(["c", "d", "e"])
    assert list(kept._known) == ["c", "d", "e"]
    assert torch.equal(kept.stack(["a", "b", "c", "d"])[:2].context, first.context)
