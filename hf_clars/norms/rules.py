"""The table from module type to the rule that measures its parameters. A new layer type is one entry of `RULES`."""

from torch import nn

from .linear_rules import ConvRule, EmbeddingRule, LinearRule, TransposedConvRule, TransposedLinearRule
from .norm_rules import BatchNormActRule, BatchNormRule, GroupNormRule, InstanceNormRule, LayerNormRule, RMSNormRule
from .rule import Rule

# Types of libraries that need not be installed are named, not imported.
RULES: dict[type[nn.Module] | str, type[Rule]] = {
    nn.Linear: LinearRule,
    "transformers.pytorch_utils.Conv1D": TransposedLinearRule,
    nn.Conv1d: ConvRule,
    nn.Conv2d: ConvRule,
    nn.Conv3d: ConvRule,
    nn.ConvTranspose1d: TransposedConvRule,
    nn.ConvTranspose2d: TransposedConvRule,
    nn.ConvTranspose3d: TransposedConvRule,
    nn.Embedding: EmbeddingRule,
    nn.LayerNorm: LayerNormRule,
    nn.RMSNorm: RMSNormRule,
    nn.GroupNorm: GroupNormRule,
    nn.BatchNorm1d: BatchNormRule,
    nn.BatchNorm2d: BatchNormRule,
    nn.BatchNorm3d: BatchNormRule,
    nn.InstanceNorm1d: InstanceNormRule,
    nn.InstanceNorm2d: InstanceNormRule,
    nn.InstanceNorm3d: InstanceNormRule,
    "timm.layers.norm_act.BatchNormAct2d": BatchNormActRule,
}


def rule_for(module: nn.Module) -> Rule | None:
    """The module's rule; None when its type has none.

    A subclass takes its base's rule only as long as it kept the base's `forward`.
    """
    for base in type(module).__mro__:
        rule = RULES.get(base) or RULES.get(f"{base.__module__}.{base.__qualname__}")
        if rule is not None:
            return rule(module) if type(module).forward is base.forward else None  # type: ignore[attr-defined]
    return None
