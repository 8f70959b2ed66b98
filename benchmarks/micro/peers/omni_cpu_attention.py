"""vLLM-Omni's own attention in plain torch, made available on a CPU."""

from typing import Any

from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl


class CpuAttentionImpl(SDPAImpl):  # type: ignore[misc]
    def forward(self, *arguments: Any) -> Any:
        return self.forward_cuda(*arguments)


class CpuAttention(SDPABackend):  # type: ignore[misc]
    @staticmethod
    def get_impl_cls() -> type[CpuAttentionImpl]:
        return CpuAttentionImpl
