"""The campaign of scripts/kill_campaign.py; run only by pytest -m campaign."""

import os

import pytest

from scripts.kill_campaign import run_campaign

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(6 * 3600)]


def test_killed_fifty_times_it_ends_like_an_undisturbed_run(tmp_path):
    kills, seed = int(os.environ.get("EMU_KILLS", "50")), int(os.environ.get("EMU_SEED", "0"))
    assert run_campaign(tmp_path, kills, seed, "smoke") == []
