"""Several linear layers in one matmul are the same layers."""

import torch

from tests.support.packed_forward import mixed_segments, tiny_transformer

CPU = torch.device("cpu")


def test_joined_projections_give_the_same_flow() -> None:
    """With an adapter on two of the three layers, and keys and values alone in the last block."""
    model = tiny_transformer(CPU)
    segments = mixed_segments(model)
    expected = model(segments)
    model.join_projections()
    assert (model(segments) - expected).abs().max() < 5e-6


def test_joining_keeps_names_and_values_and_adds_no_memory() -> None:
    model = tiny_transformer(CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.join_projections()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    attention = model.layers[0].attn1
    weights = [attention.get_parameter(f"{name}.weight") for name in ("to_q", "to_k", "to_v")]
    places = [weight.data_ptr() for weight in weights]
    size = weights[0].nbytes
    assert places == [places[0], places[0] + size, places[0] + 2 * size]
