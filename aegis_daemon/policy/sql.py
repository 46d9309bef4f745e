"""What a piece of SQL does is told from its whole syntax tree, in each dialect that may read it; what is not understood
counts as everything.

Only statements, clauses and functions that are known to read are taken for reading: any other node of the tree is an
operation of its own name, any other function has to be allowed by name. This is defence in depth, not a wall: a view, a
rule, an operator or an allowed function may still write, and a name may be shadowed; give the server a role that can
only read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec

LONGEST: Final = 4096
"""Bytes."""
WORDS: Final = 1000
"""Words and signs in one dialect, which take about 10 µs each."""
ALL_WORDS: Final = 2000
"""The same in all dialects together: a text that is read in four of them may have 500."""
DEFAULT_DIALECTS: Final = ("postgres", "mysql", "sqlite", "tsql")
"""Where a rule names none, a statement has to pass in all of these."""
DIALECTS: Final = (
    "athena", "bigquery", "clickhouse", "databricks", "doris", "drill", "druid", "duckdb", "dremio", "exasol", "fabric",
    "hive", "materialize", "mysql", "oracle", "postgres", "presto", "redshift", "risingwave", "snowflake", "spark",
    "sqlite", "starrocks", "tableau", "teradata", "trino", "tsql",
)  # fmt: skip
OPERATIONS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE")
"""What a rule may allow."""
ARGUMENTS: Final = ("sql", "query", "statement")
"""Where a rule names no argument, all of these that a call has are judged, and it must have one."""

_REMEMBERED = 512
_DEEPEST = 24
"""Brackets within brackets: some take a time that grows with the square."""
_IN_A_ROW = re.compile(r"(?:\][^\[\]]{0,64}\[[^\[\]]*){12}|(?:<[\s\w`\"]*){12}")
"""`a[1][1][1]…` and `ARRAY<ARRAY<…`, likewise."""
_CONDITIONAL = re.compile(r"/\*M?!")  # MySQL and MariaDB run what is in these comments
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")
_READING_MODULES = frozenset({"core", "query", "datatypes"})
_QUIET_MODULES = frozenset({"math", "string", "temporal", "aggregate", "array", "json", "functions"})
_STATEMENTS = {"Select": "SELECT", "Insert": "INSERT", "Update": "UPDATE", "Delete": "DELETE", "Merge": "MERGE"}
_BENEATH = frozenset({"When", "Whens", "Returning", "OnConflict"})
"""Clauses of the statements that are named above."""
# What does more than shape a result, though it stands among what does not.
_DOING = frozenset(
    {
        "Cache", "Uncache", "Refresh", "Operator", "Opclass", "Into", "Lock", "Put", "Get", "Grant", "Revoke",
        "Analyze", "AnalyzeColumns", "AnalyzeDelete", "AnalyzeHistogram", "AnalyzeListChainedRows",
        "AnalyzeSample", "AnalyzeStatistics", "AnalyzeValidate", "AnalyzeWith", "AttachOption", "AddPartition",
        "DropPartition", "ReplacePartition", "Block", "CaseStatement", "ConditionalInsert", "EndStatement",
        "ForClause", "IfBlock", "Iterate", "Leave", "LoopBlock", "RepeatBlock", "WhileBlock", "Return",
        "StoredProcedure", "MultitableInserts", "ListStage", "QueryBand", "PropertyEQ", "JSONPathScript",
        "FunctionSpecification", "ModelAttribute",
    }
)  # fmt: skip
_FILE_NAME = re.compile(
    r"[/\\\\:]|\.(?:csv|tsv|txt|json|jsonl|ndjson|parquet|arrow|avro|orc|xlsx?|xml|db|sqlite3?|duckdb|gz|bz2|zst|zip)$",
    re.I,
)
_FORMATTED = frozenset({"spark", "databricks", "hive", "drill", "dremio"})
_FORMATS = frozenset(
    {"avro", "binaryfile", "csv", "delta", "dfs", "iceberg", "jdbc", "json", "orc", "parquet", "text", "xml"}
)
"""Where `csv.x` reads the file `x`."""
_UNSEPARATED = frozenset({"tsql", "fabric"})
"""Where a statement may follow another without a semicolon: `SELECT 1 DELETE FROM t` is two, and no alias."""
_BEGINNINGS = frozenset(
    {
        "ALTER", "BACKUP", "BEGIN", "BULK", "CHECKPOINT", "CLOSE", "COMMIT", "CREATE", "DBCC", "DEALLOCATE", "DECLARE",
        "DELETE", "DENY", "DISABLE", "DROP", "ENABLE", "END", "EXEC", "EXECUTE", "FETCH", "GET", "GO", "GOTO", "GRANT",
        "IF", "INSERT", "KILL", "MERGE", "MOVE", "OPEN", "PRINT", "RAISERROR", "READTEXT", "RECEIVE", "RECONFIGURE",
        "RENAME", "RESTORE", "RETURN", "REVERT", "REVOKE", "ROLLBACK", "SAVE", "SEND", "SET", "SETUSER", "SHUTDOWN",
        "THROW", "TRUNCATE", "UPDATE", "UPDATETEXT", "USE", "WAITFOR", "WHILE", "WITH", "WRITETEXT",
    }
)  # fmt: skip
_LOUD = frozenset(
    {
        "Anonymous", "AnonymousAggFunc", "CombinedAggFunc", "CombinedParameterizedAgg", "ParameterizedAgg",
        "DynamicIdentifier", "AIClassify", "AIEmbed", "AIForecast", "AIGenerate", "AISimilarity", "AIAgg",
        "AISummarizeAgg", "MLForecast", "MLTranslate", "Predict", "FeaturesAtTime", "GenerateEmbedding",
        "GenerateTable", "GenerateText", "GenerateBool", "GenerateDouble", "GenerateInt", "VectorSearch",
        "ReadCSV", "ReadParquet", "NextValueFor", "NetFunc", "Host", "RegDomain", "Secret", "ToFile",
        "ObjectTransform", "Transform", "XMLTable", "XMLGet", "CheckXml",
    }
)  # fmt: skip
"""Functions that reach out, write or take secrets: like unknown ones, they have to be allowed by name."""


class SqlFacts(msgspec.Struct, frozen=True):
    """`functions` are those, in lower case, that a rule has to allow; `operations` are upper case words."""

    parsed: bool
    statements: int = 0
    operations: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


UNREADABLE: Final = SqlFacts(False)


def facts(text: str, dialects: str | tuple[str, ...] = DEFAULT_DIALECTS) -> SqlFacts:
    """What the text does; with several dialects, all that it does in any of them."""
    named = (dialects,) if isinstance(dialects, str) else dialects
    if not named or len(text) > LONGEST or len(text.encode("utf-8", "replace")) > LONGEST:
        return UNREADABLE
    found = []
    for dialect in named:
        one = _facts(text, dialect, min(WORDS, ALL_WORDS // len(named)))
        if not one.parsed:
            return UNREADABLE
        found.append(one)
    return SqlFacts(
        True,
        max(one.statements for one in found),
        tuple(sorted({name for one in found for name in one.operations})),
        tuple(sorted({name for one in found for name in one.functions})),
    )


def sql_fault(
    text: str, operations: frozenset[str], functions: frozenset[str], dialects: tuple[str, ...] = DEFAULT_DIALECTS
) -> str | None:
    """Why the SQL is refused; None for one statement that does nothing but what is allowed."""
    if len(text) > LONGEST:
        return f"is longer than the {LONGEST} bytes of SQL that are looked at"
    found = facts(text, dialects)
    if not found.parsed:
        return "is not SQL that can be read with certainty"
    if found.statements != 1:
        return "is not a single SQL statement"
    if not found.operations or not operations.issuperset(found.operations):
        return "does more than its SQL is allowed to do"
    if not functions.issuperset(found.functions):
        return "calls a SQL function that is not allowed"
    return None


@lru_cache(_REMEMBERED)
def _facts(text: str, dialect: str, words: int) -> SqlFacts:
    if _CONDITIONAL.search(text) or _CONTROL.search(text) or not _shallow(text):
        return UNREADABLE
    syntax = _library()
    try:
        read = _reader(dialect)(text, words)
        statements = [one for one in read if one is not None and not isinstance(one, syntax.Semicolon)]
        operations: set[str] = set()
        functions: set[str] = set()
        for statement in statements:
            for node in statement.walk():
                _note(node, syntax, dialect, operations, functions)
                if dialect in _UNSEPARATED and type(node) is syntax.Identifier and not node.quoted:
                    operations.update(_BEGINNINGS & {node.name.upper()})
    except Exception:  # whatever it is, nobody knows what the text does
        return UNREADABLE
    return SqlFacts(bool(statements), len(statements), tuple(sorted(operations)), tuple(sorted(functions)))


def _note(node: Any, syntax: Any, dialect: str, operations: set[str], functions: set[str]) -> None:
    kind = type(node)
    name = kind.__name__
    module = kind.__module__.rpartition(".")[2]
    if name in _STATEMENTS:
        operations.add(_STATEMENTS[name])
    elif name == "Table" and _reads_a_file(node, dialect):
        operations.add("FILE")
    elif name == "Table" and _is_elsewhere(node, dialect):
        operations.add("LINK")
    elif isinstance(node, syntax.Func):
        qualified = _qualifier(node, syntax)
        if qualified or name in _LOUD or module not in _READING_MODULES | _QUIET_MODULES:
            functions.add(f"{qualified}{_called(node, syntax)}")
    elif name in _BENEATH:
        if name == "OnConflict" and node.args.get("expressions"):
            operations.add("UPDATE")
    elif name in _DOING or module not in _READING_MODULES | _QUIET_MODULES:
        operations.add(name.upper())
    elif node.parent is None and not isinstance(node, syntax.Query):
        operations.add(name.upper())  # `VALUES` and the like, which no rule can allow
    elif isinstance(node, syntax.SetOperation):
        operations.add("SELECT")


def _called(node: Any, syntax: Any) -> str:
    if isinstance(node, syntax.Anonymous | syntax.AnonymousAggFunc):
        return str(node.name).lower()
    return str(node.sql_name()).lower()


def _qualifier(node: Any, syntax: Any) -> str:
    """`evil.` of `evil.count(x)`, which is another function than `count`."""
    names: list[str] = []
    here = node
    while isinstance(here.parent, syntax.Dot) and here.parent.expression is here:
        here = here.parent
        names.insert(0, here.this.sql().lower())
    table = node.parent
    if isinstance(table, syntax.Table) and table.this is node:  # `FROM evil.f(1)`
        names = [part.sql().lower() for part in (table.args.get("catalog"), table.args.get("db")) if part] + names
    return "".join(f"{one}." for one in names)


def _reads_a_file(table: Any, dialect: str) -> bool:
    """Some databases take `FROM '/etc/passwd'`, a quoted name that looks like a file, or `@stage`, for the file."""
    this, schema = table.this, table.args.get("db")
    kind = type(this).__name__
    if kind in ("Literal", "Var", "Parameter", "Placeholder", "SessionParameter"):
        return True
    if dialect in _FORMATTED and schema is not None and schema.name.lower() in _FORMATS:
        return True
    return kind == "Identifier" and (
        _FILE_NAME.search(this.name) is not None or (dialect == "duckdb" and this.quoted and "." in this.name)
    )


def _is_elsewhere(table: Any, dialect: str) -> bool:
    """A table of another database server: `t@link`, `server.database.schema.t`."""
    this = table.this
    if dialect in _UNSEPARATED:
        return type(this).__name__ == "Dot"
    return type(this).__name__ == "Identifier" and not this.quoted and "@" in this.name


def _shallow(text: str) -> bool:
    """Whether no reader's stack and time are at stake."""
    if _IN_A_ROW.search(text):
        return False
    depth = 0
    for char in text:
        if char in "([{":
            depth += 1
            if depth > _DEEPEST:
                return False
        elif char in ")]}":
            depth -= 1
    return True


class _Endless(Exception):
    """The reader went to and fro for longer than a text of this size takes."""


@lru_cache
def _reader(dialect: str) -> Callable[[str, int], list[Any]]:
    """Parses a text of at most so many words. What a word may be is tried out, and tried again within each bracket:
    `DECIMAL(DECIMAL(…` takes twice as long with every level, so the reader's steps are counted."""
    from sqlglot.dialects.dialect import Dialect

    found = Dialect.get_or_raise(dialect)
    reader: Any = found.parser_class

    class Counting(reader):  # type: ignore[misc]
        left = 0

        def _advance(self, times: int = 1) -> None:
            self.left -= 1
            if self.left < 0:
                raise _Endless
            super()._advance(times)

    def read(text: str, words: int) -> list[Any]:
        tokens = found.tokenize(text)
        if len(tokens) > words:
            raise _Endless
        parser = Counting(dialect=found)
        parser.left = 500 + 2 * len(tokens)
        parsed: list[Any] = parser.parse(tokens, text)
        return parsed

    return read


@lru_cache(1)
def _library() -> Any:
    from sqlglot import exp, parser  # here: it takes 0.1 s and 30 MB, for those who use it

    parser.logger.disabled = True  # it would print the SQL
    return exp
