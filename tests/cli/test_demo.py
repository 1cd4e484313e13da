import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(580)
def test_the_demo_shows_what_it_says(tmp_path):
    command = [sys.executable, "-m", "fi_cachestore.cli.main", "demo", "--root", str(tmp_path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=570)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["cold"]["profile_count"] == 12
    assert document["warm"]["measurement_count"] == 0
    assert document["warm"]["hit_count"] == 12
    assert sum(one["profile_count"] for one in document["four"]) == 12
    assert "Invalid sf layout in run" in document["collision"]["old_key_error"]
    assert document["collision"]["differences"] == [["params._use_8x4_sf_layout", "True", "False"]]
    why = document["collision"]["why"]
    assert (why["reason"], why["nearest"][0]["differences"][0]["field"]) == ("absent", "params._use_8x4_sf_layout")
    assert why["next"] == [
        "the runner is configured otherwise (params._use_8x4_sf_layout: stored True, asked False): tune with this configuration"
    ]
    assert -1 not in document["served"].values()
    caught = document["quarantine"]
    assert caught["first"]["tactic"] % 2 == caught["again"]["tactic"] % 2 == 1, "8x4"
    assert caught["second"]["tactic"] % 2 == 0, "128x4"
    [why] = caught["second"]["quarantined"].values()
    assert "another tactic list" in why
    assert caught["second"]["quarantined"].keys() == caught["again"]["quarantined"].keys()
    assert caught["second"]["profile_count"] == caught["again"]["profile_count"] == 0
    assert caught["why"]["reason"] == "quarantined"
    assert "another tactic list" in caught["why"]["detail"]
