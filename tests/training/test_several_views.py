"""A cache of views and cells, trained on, resumed and evaluated."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.cache.contract import Cache, require_arrays
from world_modality.cache.frame_shapes import ObservationShape, WindowShape
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.cache.mapped_rows import MappedRows
from world_modality.cache.writer import update_manifest
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as eval_offline
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run

CPU = torch.device("cpu")
VIEWS, GRID, DIM = 2, 2, 5


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    spec = SyntheticSpec(num_views=VIEWS, grid_size=GRID, cell_dim=DIM)
    return write_synthetic_cache(tmp_path_factory.mktemp("views"), spec)


@pytest.fixture
def own(cache, tmp_path):
    """The same cache, for a test that changes it."""
    spec = SyntheticSpec(num_views=VIEWS, grid_size=GRID, cell_dim=DIM)
    return write_synthetic_cache(tmp_path / "own", spec)


@pytest.mark.parametrize("place", ["device", "disk"])
def test_a_policy_reads_the_cells(cache, place):
    tensors = FrameTensors.from_cache(cache, CPU, place=place)
    assert tensors.observation == cache.observation_shape == ObservationShape(DIM, VIEWS, GRID)
    assert isinstance(tensors.embeddings, MappedRows) == (place == "disk")
    batch = tensors.gather(torch.tensor([3, 40]), WindowShape())
    expected = np.asarray(cache.load("view_embeddings"))[[3, 40]]
    np.testing.assert_array_equal(batch.embeddings[:, -1].numpy(), expected)


@pytest.mark.parametrize("place", ["device", "disk"])
def test_components_of_one_vector_have_no_axis_of_vectors(tmp_path, place):
    cache = write_synthetic_cache(tmp_path, SyntheticSpec(cell_dim=3))
    assert cache.load("view_embeddings").shape[1:] == (1, 3)
    tensors = FrameTensors.from_cache(cache, CPU, place=place)
    assert tensors.embeddings.shape[1:] == (3,)
    rows = tensors.embeddings[torch.arange(4, 9)]
    np.testing.assert_array_equal(rows.numpy(), np.asarray(cache.load("view_embeddings"))[4:9, 0])


@pytest.mark.parametrize("model_type", ["A", "C"])
def test_an_arm_of_several_views_trains_resumes_and_is_evaluated(cache, tmp_path, model_type):
    knobs = {"dropout": 0.1, "num_epochs": 3}
    whole = run(tiny_train_config(cache, tmp_path / "whole", model_type, **knobs))
    config = tiny_train_config(cache, tmp_path / "halved", model_type, **knobs)
    run(config)
    for epoch in (1, 2):
        (config.log_dir / f"model_{model_type}_epoch{epoch}.pt").unlink()
    on_disk = dataclasses.replace(config, resume=True, embeddings_on="disk")
    assert_same_weights(weights(whole.checkpoint), weights(run(on_disk).checkpoint))

    checkpoint = load_checkpoint(whole.checkpoint, CPU)
    assert checkpoint.policy_config.frame.observation == cache.observation_shape
    assert checkpoint.manifest["observation"] == cache.manifest["observation"]
    assert checkpoint.model["view_position"].shape[0] == VIEWS
    assert checkpoint.model["cell_position"].shape[0] == GRID**2
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    report = eval_offline(EvalOfflineConfig(checkpoint=whole.checkpoint, **where))
    assert report.run["data"]["observation"] == {
        "image_keys": cache.image_keys,
        "grid_size": GRID,
        "num_components": None,
    }
    logged = [
        json.loads(line)
        for line in (tmp_path / "whole" / "metrics.jsonl").open("r", encoding="utf-8")
    ]
    last = [line for line in logged if line["kind"] == "epoch"][-1]
    assert report.actions["model"]["mse"].value == pytest.approx(last["val_action_mse"], rel=1e-5)


def test_the_place_of_a_cell_and_of_a_view_counts(cache, tmp_path):
    checkpoint = load_checkpoint(run(tiny_train_config(cache, tmp_path, "A")).checkpoint, CPU)
    policy = checkpoint.build_policy(CPU)
    tensors = FrameTensors.from_cache(cache, CPU)
    batch = tensors.gather(torch.arange(8), checkpoint.policy_config.window)

    def actions(order):
        return policy(batch.embeddings[:, :, order], batch.states, batch.world_tokens).actions

    in_place = actions([0, 1, 2, 3, 4, 5, 6, 7])
    cells_swapped, views_swapped = (
        actions([1, 0, 2, 3, 4, 5, 6, 7]),
        actions([4, 5, 6, 7, 0, 1, 2, 3]),
    )
    for other in (cells_swapped, views_swapped):
        assert (other - in_place).abs().max() > 1e-4
    # Without the learned positions the tokens of a frame are a set.
    with torch.no_grad():
        policy.view_position.zero_()
        policy.cell_position.zero_()
        policy.embedding_norm.mean.zero_()
        policy.embedding_norm.std.fill_(1)
    torch.testing.assert_close(actions([4, 5, 6, 7, 1, 0, 2, 3]), actions([0, 1, 2, 3, 4, 5, 6, 7]))


def test_statistics_of_the_inputs_are_those_of_each_vector_in_training_frames(cache, tmp_path):
    model = weights(run(tiny_train_config(cache, tmp_path, "A", num_epochs=1)).checkpoint)
    train = np.isin(cache.load("episode_index"), cache.manifest["split"]["train"])
    seen = np.asarray(cache.load("view_embeddings"))[train].astype(np.float64)
    np.testing.assert_allclose(model["embedding_norm.mean"], seen.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model["embedding_norm.std"], seen.std(axis=0), rtol=1e-5)


def test_cells_that_are_not_finite_are_refused_with_their_frame(own):
    cells = np.array(own.load("view_embeddings"))
    cells[17, 3, 2] = np.nan
    replace_arrays(own, {"view_embeddings": cells})
    with pytest.raises(
        InvalidInputError, match=r"view_embeddings holds NaN .* frame 17 in .*view_em"
    ):
        FrameTensors.from_cache(Cache(own.cache_dir, own.dataset_name), CPU)


def test_a_checkpoint_of_another_observation_is_refused_with_the_difference(own, tmp_path):
    checkpoint = load_checkpoint(run(tiny_train_config(own, tmp_path / "a", "A")).checkpoint, CPU)
    observation = {**own.manifest["observation"], "image_keys": own.image_keys[::-1]}
    update_manifest(own, {"observation": observation}, {})
    with pytest.raises(InvalidInputError, match=r"observation differ \(observation.image_keys is "):
        checkpoint.require_cache(own)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid_size": 3}, "2 views of 3x3 cells of dimension 5"),
        ({"embedding_dim": 4}, "2 views of 2x2 cells of dimension 4"),
        ({"image_keys": "camera"}, "expected image_keys, grid_size and embedding_dim"),
        ({"grid_size": None}, "expected image_keys, grid_size and embedding_dim"),
    ],
)
def test_a_manifest_that_contradicts_its_cells_is_refused(own, changes, told):
    update_manifest(own, {"observation": {**own.manifest["observation"], **changes}}, {})
    with pytest.raises(InvalidInputError, match=told):
        require_arrays(own, ("view_embeddings", "world_tokens"))
    with pytest.raises(InvalidInputError, match=told):
        FrameTensors.from_cache(own, CPU)


def test_a_cache_without_cells_is_observed_by_its_one_vector(tmp_path):
    cache = write_synthetic_cache(tmp_path)
    assert cache.observation_shape == ObservationShape(6)
    assert (cache.image_keys, cache.num_slots) == (["observation.image"], 1)
    assert cache.bytes_per_frame == 2 * 6 + 4 * (4 + 3 + 3)
