"""What programs can do, by the names of what they call."""

from __future__ import annotations

import pytest

from affiant.kernel.bpf_programs.effects import EFFECTS, effects_of


@pytest.mark.parametrize(
    ("call", "effect"),
    [
        ("bpf_probe_write_user", "writes user memory"),
        ("bpf_override_return", "overrides returns"),
        ("bpf_send_signal_task", "sends signals"),
        ("bpf_probe_read_kernel_str", "reads kernel memory"),
        ("bpf_probe_read_compat", "reads kernel memory"),
        ("bpf_copy_from_user_task", "reads user memory"),
        ("bpf_skb_store_bytes", "changes packets"),
        ("bpf_redirect_map", "changes packets"),
        ("bpf_sk_setsockopt", "changes sockets"),
        ("bpf_sys_bpf", "makes system calls"),
    ],
)
def test_a_call_has_its_effect(call: str, effect: str) -> None:
    assert effects_of([call], kind="kprobe", attach_type="") == (effect,)
    assert effect in EFFECTS


@pytest.mark.parametrize(
    "call", ["bpf_ktime_get_ns", "bpf_probe_write_user_not", "x_bpf_send_signal", "bpf_map_lookup_elem", ""]
)
def test_other_calls_have_none(call: str) -> None:
    assert effects_of([call], kind="kprobe", attach_type="") == ()


def test_how_a_program_is_attached_may_be_its_effect() -> None:
    assert effects_of([], kind="tracing", attach_type="modify_return") == ("overrides returns",)
    assert effects_of([], kind="ext", attach_type="") == ("replaces a program's function",)
    assert effects_of(["bpf_send_signal"], kind="struct_ops", attach_type="") == (
        "replaces the kernel's operations",
        "sends signals",
    )
