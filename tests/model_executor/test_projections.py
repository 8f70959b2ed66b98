"""Several linear layers in one matmul are the same layers."""

import torch

from tests.support.packed_forward import mixed_segments, tiny_transformer

CPU = torch.device("cpu")


def test_joined_projections_give_the_same_flow() -> None:
    """With an adapter on two of the three layers, and keys and values alone in the last block."""
    model = tiny_transformer(CPU)
    segments = mixed_segments(model)
    expected = model(segments)
    model.join_weights()
    assert (model(segments) - expected).abs().max() < 5e-6


def test_joining_keeps_names_and_values_and_adds_no_memory() -> None:
    model = tiny_transformer(CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.join_weights()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    attention = model.layers[0].attn1
    weights = [attention.get_parameter(f"{name}.weight") for name in ("to_q", "to_k", "to_v")]
    places = [weight.data_ptr() for weight in weights]
    size = weights[0].nbytes
    assert places == [places[0], places[0] + size, places[0] + 2 * size]
    tables = [block.scale_shift_table for block in model.layers]
    assert tables[1].data_ptr() == tables[0].data_ptr() + tables[0].nbytes


def test_joined_tables_are_those_of_each_block_bit_for_bit() -> None:
    model = tiny_transformer(CPU)
    modulation = torch.randn(3, 6, model.config.inner_dim)
    expected = [block.table(modulation) for block in model.layers]
    model.join_weights()
    for joined, alone in zip(model.block_tables(modulation), expected, strict=True):
        assert torch.equal(joined.gate, alone.gate)
        assert torch.equal(joined.ffn_gate, alone.ffn_gate)
        for norm, other in ((joined.norm, alone.norm), (joined.ffn_norm, alone.ffn_norm)):
            assert torch.equal(norm.weight, other.weight)
            assert torch.equal(norm.bias, other.bias)
