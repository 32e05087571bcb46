"""The campaigns' own counting."""

import pytest
from campaign import Campaign

from segkit.errors import InputError


class ParagraphError(InputError):
    __str__ = ValueError.__str__  # an `InputError` itself has one line


def test_it_tells_results_refusals_and_failures_apart() -> None:
    said: list[str] = []
    campaign = Campaign("files", said.append)
    with campaign.case("right"):
        pass
    with campaign.case("refused"):
        raise InputError("one line")
    with campaign.case("refused in a paragraph"):
        raise ParagraphError("one line\nand another")
    with campaign.case("traceback"):
        raise KeyError("shape")
    with pytest.raises(AssertionError, match=r"2 of 4:\nrefused in a paragraph: .*\ntraceback: KeyError"):
        campaign.finish()
    assert said == ["files: 4 tried, 2 survived (1 done, 2 failed, 1 refused)"]


def test_a_campaign_that_tried_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="nothing was tried"):
        Campaign("files", print).finish()
