"""A Debian guest loads and unloads modules of its own kernel, whichever that is."""

from __future__ import annotations

import pytest

from lab.guests import GuestPlan, start_guest
from lab.soak import in_and_out


@pytest.mark.parametrize("suite", ["bookworm", "sid"])
def test_modprobe_loads_and_unloads_with_what_is_needed(suite: str) -> None:
    """A name that the kernel does not have fails, or a round of a load that does nothing would count."""
    plan = GuestPlan(
        suite=suite, firmware=False, tpm=False, debian=True, modules=("dummy", "nft_chain_nat", "xfs")
    )
    with start_guest(plan) as guest:
        guest.console.run(in_and_out(plan.modules))
        with pytest.raises(RuntimeError):
            guest.console.run(f"{in_and_out((*plan.modules, 'other'))} 2> /dev/null")
