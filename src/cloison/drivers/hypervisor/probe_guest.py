"""The smallest guest that proves an accelerator, as the firmware image of a machine.

In: nothing. Out: bytes. May import: nothing. The source with its reasons is ``probe_guest.S``, next to this file.
"""

from __future__ import annotations

CODE = bytes.fromhex(
    "fa2e660f011698010f20c06683c8010f22c066ea1a000f000800b8100000008ed88ec08ed0bc00800000fc31c0bf00100000"
    "b900180000f3abc7050010000003200000c7050020000003300000c7051820000003500000c705b85f00009300e0febf0030"
    "0000b883000000b9000200008907050000200083c708e2f40f20e00d200200000f22e0b8001000000f22d8b9800000c00f32"
    "0d000100000f300f20c083e0fb0d020000800f22c0eab2000f001800b8100000008ed88ec08ed0bc00800000b86745230166"
    "0f6ec0660f6ec8660ffec8660f70d100660f7ed03dce8a46027575bf00420000b862010f0066890766c74702180066c74704"
    "008ec1e8108947060f011d95000000b011e620b020e621b004e621b001e621b0fee621bf0000e0fec787f0000000ff010000"
    "c7875003000000070000b034e643b0a9e640b004e640fbf4fa833c25006000000372f3b82a000000e7f4eb07b801000000e7"
    "f4f4ebfd50ff042500600000b020e6205848cf0f1f80000000000000000000000000ffff0000009bcf00ffff00000093cf00"
    "ffff0000009baf001f0078010f000f020040000000000000"
)
"""Assembled from probe_guest.S (a test compares)."""
EXIT_PORT = 0xF4
SUCCESS = 0x2A
SIZE_BYTES = 64 << 10
RESET_VECTOR = 0xFFF0
JUMP_TO_CODE = bytes.fromhex("ea000000f0")
"""jmp far f000:0000"""


def build_firmware() -> bytes:
    image = bytearray(SIZE_BYTES)
    image[: len(CODE)] = CODE
    image[RESET_VECTOR : RESET_VECTOR + len(JUMP_TO_CODE)] = JUMP_TO_CODE
    return bytes(image)


def exit_code(value: int) -> int:
    """What QEMU's process ends with when a guest writes ``value`` to isa-debug-exit."""
    return (value << 1) | 1
