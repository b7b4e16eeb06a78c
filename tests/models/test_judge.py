"""`judge` catches a mixer with a fault, and kinds are registered once."""

from typing import ClassVar

import jax.numpy as jnp
import pytest

from hybridlm.errors import UserError
from hybridlm.models import mixers
from hybridlm.models.mixers.base import MixerConfig
from hybridlm.models.mixers.laws import judge
from hybridlm.models.mixers.short_conv import GatedShortConv, ShortConvConfig
from hybridlm.settings.bounds import settings


@settings
class LeakyConfig(ShortConvConfig):
    kind_name: ClassVar[str] = "leaky"

    def build(self, spec, *, rngs):
        return Leaky(self, spec, rngs=rngs)


class Leaky(GatedShortConv):
    """It convolves over the boundaries of documents."""

    def extend(self, x_BTD, context, state):
        ids_BT = jnp.ones_like(context.segment_ids_BT)
        return super().extend(x_BTD, context._replace(segment_ids_BT=ids_BT), state)


@pytest.fixture
def leaky(monkeypatch):
    monkeypatch.setattr(mixers, "KINDS", dict(mixers.KINDS))
    mixers.register(LeakyConfig)
    return dict(kind="leaky", conv_width=3)


def test_a_planted_fault_is_caught(leaky):
    (verdict,) = judge(leaky, ["packed = separate"], width=8)
    assert not verdict.holds and "off by" in verdict.reason
    assert str(verdict).startswith("packed = separate: BROKEN: ")


@settings
class EvenConfig(ShortConvConfig):
    kind_name: ClassVar[str] = "even"

    def build(self, spec, *, rngs):
        return Even(self, spec, rngs=rngs)


class Even(GatedShortConv):
    """It asserts an even length, without a message."""

    def extend(self, x_BTD, context, state):
        if x_BTD.shape[1] % 2:
            raise AssertionError  # as `assert` does where no test rewrites it
        return super().extend(x_BTD, context, state)


def test_an_assertion_without_a_message_breaks_a_law():
    (verdict,) = judge(EvenConfig(), ["decode = whole"], width=8)
    assert not verdict.holds
    assert str(verdict) == "decode = whole: BROKEN: an assertion without a message failed"


@pytest.mark.parametrize("draws", [0, -1])
def test_a_law_that_would_not_be_checked_is_refused(draws):
    with pytest.raises(UserError, match=f"draws is {draws}: "):
        judge(dict(kind="short_conv"), ["causal"], draws=draws)


def test_an_unknown_law_is_refused_before_any_is_checked(leaky):
    with pytest.raises(UserError, match="there is no law 'packd = separate': did you mean"):
        judge(leaky, ["packd = separate"])


def test_settings_that_do_not_fit_the_width_are_refused():
    with pytest.raises(UserError, match="mixer.heads is 3 and does not divide model.width 32"):
        judge(dict(kind="moba", heads=3, kv_heads=1), "causal", width=32)


def test_a_law_may_be_given_by_its_name_alone(leaky):
    (verdict,) = judge(leaky, "finite", width=8)
    assert verdict.law == "finite" and verdict.holds, verdict
    with pytest.raises(UserError, match="there is no law 'finit': did you mean 'finite'"):
        judge(leaky, "finit")


def test_a_kind_is_one_class(leaky):
    """A cell that runs twice replaces its class; no other class may take its kind."""
    assert mixers.register(LeakyConfig) is LeakyConfig

    class Other(MixerConfig):
        kind_name = "leaky"

    with pytest.raises(ValueError, match="'leaky' is the kind of LeakyConfig"):
        mixers.register(Other)
