"""What training comes to, beside what it came to when the golden file was recorded."""

from __future__ import annotations

import pytest

from tests.golden import compare
from tests.golden.cases import QUICK, Case, cases
from tests.golden.measure import Bench, Measured, build


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("case", [c for c in cases() if c.name in QUICK], ids=lambda c: c.name)
def test_losses_and_results_are_as_recorded(bench: Bench, case: Case) -> None:
    golden = compare.read()
    found = bench.measure(case)
    exact = golden["build"] == build()
    assert not compare.differences(golden["cases"][case.name], found, exact=exact)


def test_the_golden_file_has_every_case() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    assert sorted(compare.read()["cases"]) == sorted(names)
    assert set(names) >= QUICK


def test_one_bit_is_a_difference() -> None:
    golden = {"losses": ["0x1.0000000000000p+0"], "results": {"a": "1"}}
    assert not compare.differences(
        golden, Measured(["0x1.0000000000000p+0"], {"a": "1"}), exact=True
    )
    other = Measured(["0x1.0000020000000p+0"], {"a": "2"})
    assert len(compare.differences(golden, other, exact=True)) == 2
    assert not compare.differences(golden, other, exact=False)
    far = Measured(["0x1.0001000000000p+0"], {"a": "2"})
    assert len(compare.differences(golden, far, exact=False)) == 1
