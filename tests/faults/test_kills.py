"""Killed again and again at random moments, with every server misbehaving: a short run of what `make soak` does."""

from pathlib import Path

from tests.support.fleet import fleet_on_loopback
from tests.support.oracle import shown
from tests.support.storm import storm_over

KILLS = 10
SEED = 7
CONFIGURE_S = 0.1  # after one fault a life would otherwise send nothing more


async def test_killed_again_and_again_under_random_faults_it_delivers_all_that_it_took(tmp_path: Path) -> None:
    async with (
        fleet_on_loopback(tmp_path, agents=("claude", "codex"), guilds=("build", "lobby")) as fleet,
        storm_over(fleet, seed=SEED, share=0.2) as storm,
    ):
        storm.configure_s = CONFIGURE_S
        for number in range(KILLS):
            await storm.live_and_die(storm.rng.uniform(0.05, 0.5), early=number % 4 == 0)
        storm.calm()
        async with storm.host() as host:
            await host.call("configure", {"config": fleet.config()})  # a closed gate probes at once
            verdict = await storm.oracle.holds(host)
            await shown(fleet, host)
    assert verdict.kept, verdict
    assert storm.oracle.owed
