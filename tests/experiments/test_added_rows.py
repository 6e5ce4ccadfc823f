"""Rows of further methods join a table that is there, whose own rows stay."""

import pytest

from experiments.added_rows import joined_csv, joined_markdown, methods_in

OLD = """# Title

Old words.

| method | 25 % |
| --- | ---: |
| unpruned | 92 |
| A | 80.0 |
| D (control) | 60 |
| question alone | 35 |

## Clips

- old clips.

## Not run

- B: why.
"""
NEW = """# Title

New words.

| method | 25 % |
| --- | ---: |
| unpruned | 92 |
| B | 71 |
| D (control) | 61 |
| question alone | 35 |

## Clips

- new clips.

## Not run

- E: why.
"""


def test_rows_join_in_order_and_what_is_there_stays():
    found = joined_markdown(OLD, NEW, ["A", "B", "D (control)"], {"Clips": "Without B."})
    assert found == (
        OLD.replace("Old words", "New words")
        .replace("| A | 80.0 |\n", "| A | 80.0 |\n| B | 71 |\n")
        .replace("## Clips\n", "## Clips\n\nWithout B.\n")
        .replace("- B: why.", "- E: why.")
    )
    assert joined_markdown(OLD, OLD, ["A", "D (control)"], {}) == OLD


def test_lines_of_a_sheet_join_method_by_method():
    old = 'ratio,method,accuracy\n1,none,0.92\n0.5,a,0.80\n0.5,"d(x=1,y=2)",0.6\n'
    new = 'ratio,method,accuracy\n1,none,0.93\n0.5,"d(x=1,y=2)",0.7\n0.5,b,0.5\n0.1,b,0.4\n'
    assert methods_in(old) == ["none", "a", "d(x=1,y=2)"]
    joined = joined_csv(old, new, ["none", "a", "b", "d(x=1,y=2)"])
    assert joined == old.replace("0.5,a,0.80\n", "0.5,a,0.80\n0.5,b,0.5\n0.1,b,0.4\n")


def test_tables_with_other_columns_do_not_join():
    with pytest.raises(ValueError, match="columns"):
        joined_csv("method,a\n", "method,b\n", [])
    with pytest.raises(ValueError, match="columns"):
        joined_markdown(OLD, NEW.replace("25 %", "20 %"), ["A"], {})
