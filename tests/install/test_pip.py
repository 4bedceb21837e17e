"""What pip prints, turned into progress and into one line."""

from __future__ import annotations

import pytest

from dreambooth_core.environment.pip import _Follower, explain, hide_credentials


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
            "'Failed to establish a new connection: [Errno -3] Temporary failure in name "
            "resolution')': /simple/pip/\nERROR: No matching distribution found for pip==26.3",
            "is there a network",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 2] No such file\n"
            "HINT: This error might have occurred since this system does not have Windows Long "
            "Path support enabled.",
            "too long for Windows",
        ),
        ("Could not fetch URL https://x/: SSLError(CERTIFICATE_VERIFY_FAILED)", "certificate"),
        ("ERROR: [WinError 5] Access is denied: 'C:\\\\x\\\\torch.dll'", "may not be written"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "no torch==2.13.0+cpu"),
        ("fine\nERROR: something new\n", "something new"),
        ("no such option: --progress-bar\n", "no such option"),
        ("", "said nothing"),
    ],
)
def test_a_failure_is_one_line_with_advice(output: str, said: str) -> None:
    what, do = explain(output)
    assert said in what
    assert do and "\n" not in what + do


def test_progress_of_one_file_is_its_bytes() -> None:
    seen: list[tuple[int, int, str]] = []
    follow = _Follower(1, lambda *step: seen.append(step))
    assert follow.took("Progress 1048576 of 191794682\n")
    assert not follow.took("Collecting torch==2.13.0\n")
    assert seen == [(1048576, 191794682, "B")]


def test_progress_of_many_is_their_number() -> None:
    seen: list[tuple[int, int, str]] = []
    follow = _Follower(2, lambda *step: seen.append(step))
    assert follow.took("Progress 10 of 20\n")
    for line in ("Collecting a==1\n", "Processing ./b.whl\n", "Collecting c\n", "Installing\n"):
        assert not follow.took(line)
    assert seen == [(1, 2, "packages"), (2, 2, "packages"), (2, 2, "packages")]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@mirror.example/simple", "https://mirror.example/simple"),
        ("https://mirror.example/simple", "https://mirror.example/simple"),
        ("torch==2.13.0", "torch==2.13.0"),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str) -> None:
    assert hide_credentials(address) == shown
