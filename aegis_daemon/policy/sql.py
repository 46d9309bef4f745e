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
_CONDITIONAL = re.compile(r"/\*[A-Za-z]?!")  # MySQL, MariaDB and TiDB run what is in these comments
_NESTED = re.compile(r"/\*(?:(?!\*/).)*?/\*", re.DOTALL)
"""A comment within a comment: systems differ on which `*/` ends it, and the library reads `/*/**/` wrongly."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]|\r(?!\n)")
"""A `\\r` alone ends a comment here and not there."""
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
_EPONYMOUS = re.compile(r"pragma_|(?:fsdir|zipfile|sqlite_dbpage)$", re.I)
"""SQLite's tables that are functions: `FROM fsdir WHERE path = '/'` calls one without brackets."""
_ALONE = re.compile(r"^[ \t]*(?:/|go|delimiter[ \t].+)[ \t\r]*$", re.I | re.M)
"""Lines at which a command line client ends the statement, or changes what ends it."""
_SIGNS = r"[ \t\r\n;,.()\[\]}+<>=~!%^&|?]|\{(?![{%#])|-(?!-)|/(?!\*)|\*(?!/)"
_APART = r"(?![\w$'\"`\\]|[^\x00-\x7f])"
_MARKS = "\u0300-\u036f\u0900-\u0dff\u0e31-\u109f\u1780-\u17ff"
"""Where the marks are that go with letters; other signs that are not ASCII stand in quotes or nowhere."""
_UNSURE = frozenset({"athena"})
"""Where part of the statements is read with backslash escapes and part without."""
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
    if _CONDITIONAL.search(text) or _NESTED.search(text) or _CONTROL.search(text) or not _shallow(text):
        return UNREADABLE
    syntax = _library()
    try:
        tokens, read = _reader(dialect)(text, words)
        statements = [one for one in read if one is not None and not isinstance(one, syntax.Semicolon)]
        operations: set[str] = set()
        functions: set[str] = set()
        for statement in statements:
            for node in statement.walk():
                _note(node, syntax, dialect, operations, functions)
                if dialect in _UNSEPARATED and type(node) is syntax.Identifier and not node.quoted:
                    operations.update(_BEGINNINGS & {node.name.upper()})
        if "COMMAND" not in operations and not _agreed(text, tokens, dialect):
            return UNREADABLE
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
    if kind == "Identifier" and dialect == "sqlite" and _EPONYMOUS.match(this.name):
        return True
    if kind == "Identifier" and dialect == "duckdb" and _FILE_NAME.search(".".join(one.name for one in table.parts)):
        return True  # `FROM data.csv`
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


def _agreed(text: str, tokens: list[Any], dialect: str) -> bool:
    """Whether what is quoted and what is comment is the same to the library and to a reader that knows nothing else,
    takes the simplest forms alone and refuses where systems, versions or settings differ.

    The library has its own mind about `#>` in MySQL, `#--` in PostgreSQL, white space that is not ASCII, and more:
    each of them hides a statement from it.
    """
    pieces, keywords = _pieces(dialect)
    quoted: list[tuple[int, int]] = []
    bare = list(text)  # without comments
    code = list(text)  # and without what is quoted
    at = 0
    while at < len(text):
        found = pieces.match(text, at)
        if found is None:
            return False
        start, at = found.span()
        if found.lastgroup == "quoted":
            quoted.append((start, at))
            code[start:at] = "x" * (at - start)
        elif found.lastgroup == "comment":
            if found[0].rstrip().endswith("\\"):
                return False  # some go on with the comment in the next line
            bare[start:at] = code[start:at] = " " * (at - start)
        elif found.lastgroup == "word" and not found[0].isascii() and found[0].upper() in keywords:
            return False  # with a long s, `select` is a key word to the library alone
    if _ALONE.search(text if dialect in _UNSEPARATED else "".join(code)):
        return False
    before, at = -1, 0
    left = iter([*quoted, (len(text) + 1, 0)])
    start, end = next(left)
    for token in tokens:
        first, last = token.start, token.end + 1
        if (first, last) == (before, at):
            continue  # `3L` is a number, a sign and a type to the library
        if first < at or "".join(bare[at:first]).strip(" \t\r\n") or start < first:
            return False
        if token.token_type.name != "HINT" and "".join(bare[first:last]) != text[first:last]:
            return False
        if start < last:
            if (start, end) != (first, last):
                return False
            start, end = next(left)
        before, at = first, last
    return start > len(text) and not "".join(bare[at:]).strip(" \t\r\n")


@lru_cache
def _pieces(dialect: str) -> tuple[re.Pattern[str], frozenset[str]]:
    """What a text of this dialect is made of, as far as all its readers agree, and the words that mean something."""
    from sqlglot.dialects.dialect import Dialect

    found = Dialect.get_or_raise(dialect)
    library: Any = found.tokenizer_class
    escapes = set(library.STRING_ESCAPES)
    quotes = [one for one in library.QUOTES if len(one) == 1]
    names = [one for one in library.IDENTIFIERS if isinstance(one, str)]
    comments = [one for one in library.COMMENTS if isinstance(one, str)]
    mysql = bool(library.DASH_COMMENT_REQUIRES_BOUNDARY)

    def string(quote: str) -> str:
        doubled = f"|{quote}{quote}" if quote in escapes else ""
        if dialect in _UNSURE:
            return rf"{quote}(?:[^{quote}\\]|\\(?![\\'\"]){doubled})*+{quote}"
        if "\\" not in escapes:
            return rf"{quote}(?:[^{quote}]{doubled})*+{quote}"
        escaped = r"\\[^\"]" if mysql and quote == '"' else r"\\."  # where `"` quotes a name, nothing is escaped
        return rf"{quote}(?:[^{quote}\\]|{escaped}{doubled})*+{quote}"

    plain = "|".join(string(one) for one in quotes)
    either = f"[{''.join(quotes)}]"
    neutral = "|".join(rf"{one}(?:[^{one}\\]|\\(?![\\'\"]))*+{one}(?!{one})" for one in quotes)
    inside = [rf"{one}(?:[^{one}\\]|\\(?![\\{one}])|{one}{one})*+{one}" for one in names]
    if any(one == ("[", "]") for one in library.IDENTIFIERS):
        inside.insert(0, r"\[[^\[\]]*+\](?!\])")
    special = rf"(?:[uU]&|[bBxXrRuU]|[bB][rR]|[rR][bB])(?:{neutral})"
    thrice = [rf"{one}[^{one[0]}\\]*+{one}(?!{one[0]})" for one in library.QUOTES if len(one) == 3]
    quoted = [special, *thrice, rf"[nN]?(?:{plain})", *inside]
    if library.BYTE_STRINGS and library.BYTE_STRINGS[0][0] == "e'":
        # A string in the next line goes on with the escapes of the one before.
        quoted.append(r"[eE]'(?:[^'\\]|\\.|'')*+'(?!(?:\s|--[^\n]*+\n|/\*.*?\*/)*+')")
    money = r"\$\w++" + (r"(?![$:(])" if dialect == "sqlite" else r"(?!\$)")
    if library.HEREDOC_STRINGS:
        quoted.append(r"\$(?P<tag>(?:[A-Za-z_][A-Za-z0-9_]*+)?+)\$.*?\$(?P=tag)\$")
        money = (r"\$(?:[0-9]++|[A-Za-z_]\w*+)" if dialect == "duckdb" else r"\$[0-9]++") + r"(?![\w$])"
    elif "$$" in library.RAW_STRINGS:
        quoted.append(r"\$\$.*?\$\$")
    lines = [rf"{re.escape(one)}[^\n]*+" for one in comments if one != "--"]
    lines.append(r"--(?=[ \t\r\n]|\Z)[^\n]*+" if mysql else r"--[^\n]*+")
    suffix = "(?:[lLsSyYdDfF]|[bB][dD])?+" if library.NUMERIC_LITERALS else ""
    whole = "?" if dialect == "bigquery" else "?+"  # `my-project-12.x`
    decimal = rf"[0-9]++(?:_[0-9]++)*+(?:\.[0-9]*+){whole}(?:[eE][+-]?[0-9]++)?+{suffix}"
    number = rf"(?:0[xX][0-9a-fA-F]++|0[bB][01]++|{decimal}){_APART}"
    variable = r"[@:#](?![\w$:]*\()" if dialect == "sqlite" else "[@:#]"
    prefix = rf"[uU]&[\"']|(?:[bBxXrReEuUnNqQ]|[bB][rR]|[rR][bB]|[nN][qQ]){either}"
    word = rf"(?!{prefix})[^\W\d](?:[\w{_MARKS}]|\$(?!\$))*+(?!\$)"
    return (
        re.compile(
            rf"(?P<comment>/\*.*?\*/|{'|'.join(lines)})|(?P<quoted>{'|'.join(quoted)})|(?P<word>{word})|{number}|{money}"
            rf"|{_SIGNS}|{variable}",
            re.S,
        ),
        frozenset({*library.KEYWORDS, *found.parser_class.FUNCTIONS}),
    )


class _Endless(Exception):
    """The reader went to and fro for longer than a text of this size takes."""


@lru_cache
def _reader(dialect: str) -> Callable[[str, int], tuple[list[Any], list[Any]]]:
    """Gives the words and what they make, for a text of at most so many. What a word may be is tried out, and tried
    again within each bracket: `DECIMAL(DECIMAL(…` takes twice as long with every level, so the reader's steps are
    counted."""
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

    def read(text: str, words: int) -> tuple[list[Any], list[Any]]:
        tokens = found.tokenize(text)
        if len(tokens) > words:
            raise _Endless
        parser = Counting(dialect=found)
        parser.left = 500 + 2 * len(tokens)
        return tokens, parser.parse(tokens, text)

    return read


@lru_cache(1)
def _library() -> Any:
    from sqlglot import exp, parser  # here: it takes 0.1 s and 30 MB, for those who use it

    parser.logger.disabled = True  # it would print the SQL
    return exp
