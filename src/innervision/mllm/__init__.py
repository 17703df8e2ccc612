"""The model under study: loads it, feeds it, shows its layers."""

from innervision.mllm.inputs import Inputs, Tokens
from innervision.mllm.model import MLLM
from innervision.mllm.walk import Visitor

__all__ = ["MLLM", "Inputs", "Tokens", "Visitor"]
