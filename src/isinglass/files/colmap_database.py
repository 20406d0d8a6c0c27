"""Databases of COLMAP: every row is checked by SQLite before pycolmap reads it.

pycolmap believes what a row says of its blob (`rows`, `cols`, a camera's model) and reads or writes beyond it where
that is wrong. The tables are those of COLMAP's `src/colmap/scene/database_sqlite.cc`; an older database has
some of them.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from isinglass.errors import InputError
from isinglass.files.colmap_model import parameter_counts

_MAX_PX = 2**31 - 1
_MATRIX = (  # columns that hold a matrix: where, bytes of a number, columns of the matrix
    ("keypoints", 4, "(2, 4, 6)"),
    ("descriptors", 1, None),
    ("matches", 4, "(2)"),
    ("two_view_geometries", 4, "(2)"),
)
_FIXED_BYTES = (
    ("two_view_geometries", {"F": 72, "E": 72, "H": 72, "qvec": 32, "tvec": 24}),
    ("pose_priors", {"position": 24, "position_covariance": 72, "gravity": 24}),
    ("rig_sensors", {"sensor_from_rig": 56}),
)


def check_colmap_database(path: Path, shown: Path | None = None) -> None:
    """Raise InputError for a row that pycolmap cannot read safely; `shown` is the path that the message names."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            columns = {
                table: {row[1] for row in database.execute(f"pragma table_info({table})")}
                for table in ("cameras", "images", *(name for name, *_ in (*_MATRIX, *_FIXED_BYTES)))
            }
            for table, condition in _conditions(columns):
                query = f"select rowid from {table} where ({condition}) is not true limit 1"
                if (row := database.execute(query).fetchone()) is not None:
                    raise InputError(
                        f"row {row[0]} of {table} in the database {str(shown or path)!r} is damaged: it does not hold "
                        "what it says. Copy the file again, or make it anew"
                    )
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise InputError(
            f"the database {str(shown or path)!r} is damaged ({error}). Copy it again, or make it anew"
        ) from error


def _conditions(columns: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(table, what is true of each of its rows) of the tables and columns that there are."""
    sizes = " ".join(f"when {model} then {8 * count}" for model, count in sorted(parameter_counts().items()))
    sides = " and ".join(
        f"typeof({side}) = 'integer' and {side} between 1 and {_MAX_PX}" for side in ("width", "height")
    )
    conditions = [
        ("cameras", f"{sides} and typeof(params) = 'blob' and length(params) = case model {sizes} end"),
        ("images", "typeof(name) = 'text' and camera_id in (select camera_id from cameras)"),
    ]
    for table, size, widths in _MATRIX:
        whole = "typeof(rows) = 'integer' and typeof(cols) = 'integer' and rows >= 0 and cols >= 0"
        width = f" and (rows = 0 or cols in {widths})" if widths else ""
        blob = f"typeof(data) in ('blob', 'null') and ifnull(length(data), 0) = rows * cols * {size}"
        conditions.append((table, f"{whole}{width} and rows < 2147483648 and cols < 2147483648 and {blob}"))
    conditions += [
        (table, f"({column} is null or (typeof({column}) = 'blob' and length({column}) = {size}))")
        for table, fixed in _FIXED_BYTES
        for column, size in fixed.items()
        if column in columns[table]
    ]
    return [(table, condition) for table, condition in conditions if columns[table]]
