"""The deterministic part of the code of conduct, which needs no model."""

from megatron_native.alignment.rules.rule_set import NAMES, RULES, Rule, RuleResult, Rules, RuleSettings, build_rules

__all__ = ["NAMES", "RULES", "Rule", "RuleResult", "RuleSettings", "Rules", "build_rules"]
