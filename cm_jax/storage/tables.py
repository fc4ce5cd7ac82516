"""Tables for people, in Markdown."""

from collections.abc import Collection, Sequence


def markdown_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
  """Return rows of cells, the first the head, as a Markdown table with aligned columns.

  Args:
    rows: All of one length.
    right: Numbers of the columns whose cells stand at the right.

  >>> print(markdown_table([["name", "n"], ["x", "1"], ["y", "20"]], right=[1]))
  | name |  n |
  |------|---:|
  | x    |  1 |
  | y    | 20 |
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  justify = lambda i, cell: cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
  lines = ["| " + " | ".join(justify(i, cell) for i, cell in enumerate(row)) + " |" for row in rows]
  rules = ["-" * (width + 1) + (":" if i in right else "-") for i, width in enumerate(widths)]
  lines.insert(1, f"|{'|'.join(rules)}|")
  return "\n".join(lines)
