"""Statistics, rows and pages of the bench, without anything measured."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Gap, Window, gaps_of_kills, percentile
from bench.load import BenchError, parse_report
from bench.report import render_json, render_page, render_text
from bench.rows import GROUPS, NAMES, REACH, Results, Row, latency_row, rate_row, reaches, time_row

ROW = rate_row("block.fsync", 3000.0, 2000.0, "1/s")


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_a_sample_that_enough_others_do_not_exceed(samples, share):
    found = percentile(samples, share)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= share * len(samples)


def test_percentiles_of_a_hundred_samples():
    samples = list(range(100, 0, -1))
    assert (percentile(samples, 0.5), percentile(samples, 0.95), percentile(samples, 1)) == (50, 95, 100)


def test_there_is_no_percentile_of_nothing():
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("gap", "counts"),
    [
        (Gap(9.99, 10.0), True),  # ends in the window
        (Gap(10.5, 10.51), True),  # begins in it
        (Gap(9.0, 12.0), True),  # all around it
        (Gap(9.97, 9.985), True),  # within the skew
        (Gap(9.9, 9.97), False),
        (Gap(10.63, 10.7), False),
    ],
)
def test_a_kill_owns_the_gaps_that_touch_its_window(gap, counts):
    (ms,) = gaps_of_kills([Window(10.0, 10.6)], [gap], 0.02, 1.0)
    assert ms == (pytest.approx(gap.ms) if counts else 1.0)


def test_the_longest_gap_of_a_kill_counts_and_each_kill_has_its_own():
    gaps = [Gap(1.0, 1.002), Gap(1.003, 1.009), Gap(2.0, 2.003)]
    found = gaps_of_kills([Window(1.0, 1.01), Window(2.0, 2.01), Window(3.0, 3.01)], gaps, 0.0, 0.5)
    assert found == pytest.approx([6.0, 3.0, 0.5])


def test_a_ratio_above_one_is_better_for_us():
    assert rate_row("r", 3.0, 2.0, "1/s").ratio == 1.5
    assert latency_row("l", 2.0, 3.0, "µs").ratio == 1.5
    assert time_row("t", 2.0, "ms").ratio is None


def test_every_bound_is_of_a_row_that_there_is():
    assert set(REACH) <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (rate_row("block.fsync", 8.0, 10.0, "1/s"), True),
        (rate_row("block.fsync", 7.9, 10.0, "1/s"), False),
        (time_row("block.fsync", 8.0, "1/s"), False),
        (time_row("domain.uss", 4.0, "MiB"), True),
        (time_row("domain.uss", 4.1, "MiB"), False),
        (time_row("ready.cold.p95", 99.0, "ms"), None),
        (latency_row("guest.create_to_init.p50", 140.0, 100.0, "ms"), True),
        (latency_row("guest.create_to_init.p50", 160.0, 150.0, "ms"), False),
        (latency_row("guest.create_to_init.p50", 140.0, 70.0, "ms"), False),
    ],
)
def test_a_row_reaches_all_of_its_bounds_or_has_none(row, reached):
    assert reaches(row) is reached


def test_results_json_has_the_five_keys_of_each_row_in_the_order_of_the_names():
    data = msgspec.json.decode(render_json([time_row("domain.uss", 3.98765, "MiB"), ROW]))
    assert data == {
        "rows": [
            {"name": "block.fsync", "ours": 3000.0, "peer": 2000.0, "ratio": 1.5, "unit": "1/s"},
            {"name": "domain.uss", "ours": 3.988, "peer": None, "ratio": None, "unit": "MiB"},
        ]
    }
    assert msgspec.convert(data, Results).rows[0] == Row("block.fsync", 3000.0, 2000.0, 1.5, "1/s")


def test_the_page_has_machine_command_table_and_the_notes_kept_by_hand():
    page = render_page([ROW], [("processor", "a fast one")], "python -m bench", "## What was tried\n\nA lot.\n")
    assert "- processor: a fast one\n- command: `python -m bench`\n" in page
    assert "| block.fsync | 3,000 1/s | 2,000 1/s | 1.50 | ratio ≥ 0.8 | ✓ |" in page
    assert page.endswith("## What was tried\n\nA lot.\n")


def test_the_terminal_shows_what_falls_short():
    assert render_text([rate_row("block.fsync", 1.0, 2.0, "1/s")]).endswith("✗")


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"load: /dev/vda: No such file or directory\n",
        b'{"operations": 1, "iops": 1, "mb_s": 1, "p50_us": 1, "gap_us": 1, "errors": 1}',
        b'{"operations": 1, "iops": 1, "mb_s": 1, "p50_us": 1, "gap_us": 1, "errors": 0, "corrupt": 2}',
    ],
)
def test_a_load_that_failed_gives_no_figure(output):
    with pytest.raises(BenchError):
        parse_report(output)


def test_the_report_of_a_load_is_its_last_line():
    report = parse_report(
        b'started\n{"op": "read", "operations": 7, "iops": 1.5, "mb_s": 2, "p50_us": 3, "gap_us": 4, "errors": 0, '
        b'"gaps": [[2100, 1500]]}\n'
    )
    assert (report.operations, report.gaps) == (7, [(2100, 1500)])
