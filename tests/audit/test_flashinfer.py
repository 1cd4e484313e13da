"""The audit of the installed FlashInfer, pinned: a release that changes it is read again."""

from __future__ import annotations

import functools
import re
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from fi_cachestore.adapter.contracts import flashinfer_contracts
from fi_cachestore.audit.audit import audit
from fi_cachestore.audit.findings import Finding, Report, Severity
from fi_cachestore.audit.review import flashinfer_reviews, reviewed
from fi_cachestore.audit.tree import open_package

DOCUMENT = Path(__file__).parents[2] / "docs" / "audit-flashinfer-0.7.2.md"
pytestmark = pytest.mark.skipif(metadata.version("flashinfer-python") != "0.7.2.post1", reason="the release that was read")


@functools.cache
def raw() -> Report:
    return audit(open_package("flashinfer"))


@functools.cache
def report() -> Report:
    return reviewed(raw(), flashinfer_reviews())


def about(name: str, rule: str | None = None) -> list[Finding]:
    """Return the findings about classes of a name."""
    found = (item for item in raw().findings if any(re.search(rf"[.:]{name}$", type_) for type_ in item.types))
    return [item for item in found if rule is None or item.rule == rule]


def test_every_class_is_read():
    assert len(report().classes) == 119
    assert report().unread == ()


def test_counts_are_those_of_the_document():
    open_findings = [item for item in report().findings if not item.reviewed]
    counts = Counter(item.severity.value for item in open_findings)
    line = f"{counts['error']} errors, {counts['warning']} warnings and {counts['note']} notes; {len(report().findings) - len(open_findings)} findings"
    assert line in " ".join(DOCUMENT.read_text("utf-8").split())
    assert report().at_or_above(Severity.ERROR) == counts["error"]


def test_every_review_speaks_of_something():
    idle = [row for row in flashinfer_reviews() if not any(row.speaks_of(finding) for finding in raw().findings)]
    assert idle == []


# -- the claims -------------------------------------------------------------------------------------------------------------------


def test_20_of_64_direct_subclasses_define_no_extras():
    direct = [item for item in report().classes if item.direct]
    own = [item for item in direct if item.extras == f"{item.type}.get_cache_key_extras"]
    assert (len(direct), len(direct) - len(own)) == (64, 20)
    inherited = [item for item in direct if item.extras is not None and item not in own]
    assert {item.extras for item in inherited} == {"flashinfer.prims_ts.moe.runner:_PrimsTsMoERunnerMixin.get_cache_key_extras"}
    assert len(inherited) == 6
    assert sum(item.extras is None for item in report().classes) == 14


def test_three_names_are_those_of_several_classes():
    found = {item.parameter: len(item.types) for item in raw().findings if item.rule == "class-name"}
    assert found == {"CutlassFp8GemmRunner": 2, "MoERunner": 3, "_Fc1ActRunner": 2}
    assert [item.parameter for item in raw().findings if item.rule == "class-name" and item.severity is Severity.WARNING] == [
        "CutlassFp8GemmRunner"
    ]


def test_cublaslt_has_raw_rows_and_an_alignment_in_its_extras():
    assert [item.parameter for item in about("CublasltBf16GemmRunner", "dynamic-in-key")] == ["inputs[0].shape[0]"]
    assert len(about("CublasltBf16GemmRunner", "address-in-key")) == 1


def test_the_unified_moe_runner_has_an_expert_offset_in_its_extras():
    (found,) = about("TrtllmBf16RoutedRunner", "placement-in-key")
    assert found.parameter.endswith("local_expert_offset")
    assert len(found.types) == 41


def test_mxfp8_gemm_is_tuned_by_three_call_sites():
    (found,) = (item for item in raw().findings if item.rule == "op-name")
    assert (found.op, found.message.count(".py:")) == ("mxfp8_gemm", 3)


def test_bundled_configurations_never_match():
    found = [item for item in raw().findings if item.rule == "bundled-config"]
    assert [item.path.rpartition("_")[2] for item in found] == ["B200.py", "GB200.py"]
    assert all("have 3 parts, the keys of calls 4" in item.message for item in found)


@pytest.mark.parametrize(
    ("name", "rule", "parameters"),
    [
        ("CuteDslFusedMoESm90Runner", "list-parameter", {"num_experts", "num_local_experts", "top_k"}),
        ("CuteDslFp8GemmRunner", "list-input", {"inputs[0].dtype", "inputs[0].layout", "inputs[1].layout", "inputs[4].dtype"}),
        ("CuteDSLMxfp8GemmRunner", "list-parameter", {"low_m_only", "warp_splitk_supports"}),
        ("CutlassFp4GemmRunner", "no-dtype", {"dtype"}),
        ("B12xFp4GemmRunner", "kernel-parameter", {"enable_pdl"}),
        ("TGVRunner", "kernel-input", {"inputs[3].value"}),
        ("TrtllmGenMlaDecodeRunner", "list-parameter", set()),
        ("CuteDSLDirectBf16Runner", "list-input", set()),
        ("TinyGemmBf16GemmRunner", "kernel-input", set()),
    ],
)
def test_classes_that_were_read_by_hand(name, rule, parameters):
    assert {item.parameter for item in about(name, rule)} == parameters


def test_lists_by_size_include_those_whose_contract_checks_sizes():
    """What the audit finds by reading is what the contracts say after trying, for the classes whose configurations can be found."""
    checked = {name for name, contract in flashinfer_contracts().items() if contract.checks_size}
    found = {item.type for item in report().classes if item.size_dependent} | {
        type_ for item in raw().findings if item.rule == "list-size" for type_ in item.types
    }
    missed = {name.rpartition(":")[2].rpartition(".")[2] for name in checked - found}
    unified = {"_TrtllmRunnerBase", "TrtllmFp4RoutedRunner", "TrtllmFp8BlockRunner", "TrtllmFp8PerTensorRunner"}
    unified |= {"TrtllmBf16RoutedRunner", "TrtllmMxInt4RoutedRunner"}  # their configurations are made by the runner inside
    others = {"_CuteDSLBf16Runner", "CuteDSLCublasltFallbackBf16Runner", "CuteDslMlaDecodeRunner", "MoERunner", "DAProfileRunner"}
    assert missed <= unified | others


# -- the document -----------------------------------------------------------------------------------------------------------------


def test_the_document_judges_every_class_once():
    rows = re.findall(r"^\| `([^`]+):(\d+)` \| `([^`]+)` \| (real|unclear|benign) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    classes = Counter(
        (item.path.removeprefix("flashinfer/"), str(item.line), item.type.rpartition(":")[2].rpartition(".")[2])
        for item in report().classes
    )
    assert Counter(row[:3] for row in rows) == classes
    totals = Counter(row[3] for row in rows)
    line = f"{totals['real']} real, {totals['unclear']} unclear, {totals['benign']} benign"
    assert line in DOCUMENT.read_text("utf-8")
