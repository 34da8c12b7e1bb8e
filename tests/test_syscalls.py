"""The numbers of system calls are the kernel's own, on both architectures."""

import pathlib
import re

import pytest

from jail import syscalls
from jail.syscalls import NUMBERS, numbers_on

HEADERS = {
    "x86_64": pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": pathlib.Path("/usr/include/asm-generic/unistd.h"),
}
# Newer than some headers; asm/unistd_64.h, and asm-generic/unistd.h of Linux 6.6.
NEW = {"fchmodat2": 452}
# Names that asm-generic/unistd.h defines for machines of 32 bits alone.
NOT_ON_64_BITS = {"stat", "lstat"}


def defined(text: str) -> dict[str, int]:
    """name -> number, of `#define __NR_name 3` or by way of another name."""
    values = {name: int(number) for name, number in re.findall(r"#define (\w+) (\d+)\s", text)}
    for name, other in re.findall(r"#define (__NR_\w+) (__NR\w+)", text):
        if other in values:
            values.setdefault(name, values[other])
    return {name[5:]: number for name, number in values.items() if name.startswith("__NR_")}


@pytest.mark.parametrize("architecture", syscalls.ARCHITECTURES)
def test_the_table_is_the_kernels(architecture):
    header = HEADERS[architecture]
    if not header.exists():
        pytest.skip(f"no {header} (Debian: apt-get install linux-libc-dev)")
    kernel = defined(header.read_text()) | NEW
    ours = numbers_on(architecture)
    assert len(ours) > 90 and all(kernel[name] == number for name, number in ours.items())
    missing = set(numbers_on("x86_64")) - set(ours) - NOT_ON_64_BITS
    assert not missing & set(kernel), "the kernel has it, our table has not"


def test_this_machine():
    assert NUMBERS == numbers_on(syscalls.MACHINE)
    assert syscalls.numbers("read nothing_of_the_kind") == [NUMBERS["read"]]
