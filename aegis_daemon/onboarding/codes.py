"""Everything that `aegis doctor` can find has one stable name, which tells how bad it is, why, and what to do.

`codes.md` beside this is made from this table and `aegis doctor CODE` prints a row of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from aegis_daemon.core.extras import INSTALL, REINSTALL

Severity = Literal["error", "warning", "note"]
"""error: something does not work, or does not protect; warning: it will not, or works worse than it could; note: to be
known"""


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding."""

    name: str
    severity: Severity
    what: str
    """begins in lower case, without a full stop"""
    why: str
    """why it matters, one or two sentences"""
    fix: str
    """what a person does; `…` stands for what the finding names"""
    mends: bool = False
    """whether `aegis doctor --fix` does it"""


CODES: Final = {
    row.name: row
    for row in (
        # --- the installation
        Code(
            "install-ephemeral",
            "error",
            "this Aegis is there only for the moment",
            "`uvx` and `pipx run` keep programs in a cache that is cleared. Clients and services keep the path, "
            "and would start nothing tomorrow.",
            f"{INSTALL}, then `aegis agents wire` and, with a service, `aegis daemon install`",
        ),
        Code(
            "install-checkout",
            "warning",
            "this Aegis is part of a checkout of its source",
            "Clients and services keep the path of its programs, and start nothing any more once the checkout is "
            "moved, removed or built anew.",
            f"{INSTALL}, then `aegis agents wire` with that one and, with a service, `aegis daemon install`",
        ),
        Code(
            "install-incomplete",
            "error",
            "packages that Aegis needs are not installed",
            "Commands or the daemon end with an import error, some of them only when they come to it.",
            f"install Aegis again, whole: {REINSTALL}",
        ),
        Code(
            "wrapper-missing",
            "error",
            "there is no `aegis-wrap` beside this `aegis`",
            "Every wired entry starts it.",
            f"install Aegis again, whole: {REINSTALL}",
        ),
        Code(
            "wrapper-elsewhere",
            "note",
            "the `aegis-wrap` that a shell finds first is another installation's",
            "An entry that says just `aegis-wrap` starts that one, which may have another version and reach "
            "another daemon.",
            "remove one of the two, or name the wrapper by its whole path, as `aegis agents wire` does",
        ),
        # --- the daemon
        Code(
            "daemon-away",
            "note",
            "the daemon does not run",
            "That is no fault: the first session of an agent starts it. Until then there is no inbox and no HTTP.",
            "`aegis daemon start`, or `aegis daemon install` to have it run from login on",
        ),
        Code(
            "daemon-deaf",
            "error",
            "a daemon holds the lock and does not answer",
            "Agents wait in vain, and no second daemon can start.",
            "`aegis logs` says what it does; `aegis daemon restart`, or end the process that the finding names",
        ),
        Code(
            "daemon-out-of-reach",
            "error",
            "a daemon runs, and nobody can reach it",
            "It has the log open, so no second daemon can start, and its sockets are gone or in a directory that is "
            "not known: agents are told that there is none. A login's runtime directory (XDG_RUNTIME_DIR) is removed "
            "with its last session, and a daemon that was started in it lives on.",
            "end the process that the finding names, then `aegis daemon start`; `aegis daemon install` and `loginctl "
            "enable-linger` have one run that no login ends",
        ),
        Code(
            "runtime-elsewhere",
            "note",
            "the running daemon has its sockets where another XDG_RUNTIME_DIR says",
            "It was started by a session with another one (`su`, `sudo`, cron, a login, a container). Commands and "
            "wrappers find it all the same, by `daemon.at` beside its log, until that directory is removed.",
            "nothing has to be done; `aegis daemon restart` has it use this shell's",
        ),
        Code(
            "daemon-version",
            "warning",
            "the running daemon has another version than this command",
            "An upgrade takes effect with a restart alone; until then commands and daemon may misunderstand each "
            "other.",
            "`aegis daemon restart` (agents' sessions go on)",
        ),
        Code(
            "daemon-elsewhere",
            "warning",
            "the running daemon uses another configuration file than this command",
            "What you edit and validate is not what holds.",
            "`aegis daemon restart --config FILE`, or set AEGIS_CONFIG to the file that the daemon uses",
        ),
        Code(
            "daemon-warns",
            "warning",
            "the running daemon has a warning",
            "It is what `aegis status` shows.",
            "see the text of the finding",
        ),
        Code(
            "http-unserved",
            "warning",
            "the daemon's address is another program's, so nothing is served over HTTP",
            "There is no inbox in the browser, and agents that speak HTTP, with their entries, do not reach it. All "
            "others do.",
            "end the other program, or set `server.listen` to another address (`off` for none); then `aegis daemon "
            "restart`",
        ),
        Code(
            "daemon-unproven",
            "error",
            "the daemon could not prove that its rules hold, and executes nothing",
            "Calls that the rules must refuse were tried and not refused, or the log is not what was written.",
            "the finding says which proof fails; mend that rule, then `aegis daemon reload`",
        ),
        Code(
            "daemon-paused",
            "note",
            "a person has paused an agent, or all of them",
            "Every new call of it is refused.",
            "`aegis resume …`",
        ),
        Code(
            "mode-observe",
            "note",
            "no rule is enforced: the mode is `observe`",
            "Calls that the rules refuse pass, and are recorded.",
            "`aegis mode` shows what would have been refused; `aegis mode enforce` makes it hold",
        ),
        Code(
            "autostart-broken",
            "error",
            "the daemon does not run and a session could not start it",
            "Agents get an error for every request.",
            "the finding says what is missing; try `aegis daemon start` and see `aegis logs`",
        ),
        Code(
            "service-broken",
            "error",
            "the installed service cannot start: its program is not there",
            "The service names the interpreter of an installation that was moved or removed.",
            "`aegis daemon install` writes it anew",
        ),
        # --- files and permissions
        Code(
            "socket-too-open",
            "error",
            "a socket can be opened by more users than it is for",
            "Whoever opens the management socket may try to decide; whoever opens the agents' socket counts as an "
            "agent.",
            "`aegis doctor --fix`, or `chmod 600 …`",
            mends=True,
        ),
        Code(
            "socket-stale",
            "note",
            "a socket file is left of a daemon that was killed",
            "It does no harm: the next daemon replaces it.",
            "`aegis doctor --fix` removes it",
            mends=True,
        ),
        Code(
            "socket-path-long",
            "error",
            "the path of a socket is longer than the system allows",
            "The daemon cannot start: a socket's path has at most 103 bytes.",
            "set AEGIS_HOME to a shorter directory",
        ),
        Code(
            "directory-too-open",
            "error",
            "other users can change a directory of Aegis",
            "They could put files of their own in the place of the log, the keys or the socket. The daemon does "
            "not start so.",
            "`aegis doctor --fix`, or `chmod 700 …`",
            mends=True,
        ),
        Code(
            "directory-not-yours",
            "error",
            "a directory of Aegis belongs to another user",
            "The daemon does not start so.",
            "give it back with `chown`, or set AEGIS_HOME to a directory of your own",
        ),
        Code(
            "file-too-open",
            "error",
            "other users can read or change a private file of Aegis",
            "Keys decide approvals and sign the log; the stores and copies hold what agents said, and secrets.",
            "`aegis doctor --fix`, or `chmod go-rwx …`",
            mends=True,
        ),
        Code(
            "leftovers",
            "note",
            "unfinished files lie in the state directory",
            "A command or daemon was killed while it wrote. Nothing uses them.",
            "`aegis doctor --fix` removes those that are older than an hour",
            mends=True,
        ),
        Code(
            "backups-old",
            "note",
            "there are copies of clients' files that no undo needs",
            "They may hold the secrets that those files held.",
            "look at them in `backups/` of the state directory and delete what you do not want",
        ),
        Code(
            "state-damaged",
            "error",
            "a store of the daemon is damaged",
            "The daemon does not start, or ends. `state.db` keeps approvals, grants, pauses and trusted tools, "
            "`exports.db` how far exports have come; the log is in neither.",
            "stop the daemon and move the file away, with its `-wal` and `-shm`: it is begun anew. After `state.db`, "
            "before agents go on: pause again what was paused (`aegis pause`), and look at `aegis tools list`, since "
            "every tool counts as seen for the first time",
        ),
        # --- the tier
        Code(
            "tier-advisory",
            "note",
            "the tier is advisory: agents and daemon are the same user",
            "Aegis governs what goes through it. A hostile program with a shell of your account can go around it.",
            "`sudo aegis daemon install --system` makes the isolated tier",
        ),
        # --- the configuration
        Code(
            "config-missing",
            "warning",
            "there is no configuration",
            "Everything is denied.",
            "`aegis setup`, or `aegis config init` to begin by hand",
        ),
        Code(
            "config-faulty",
            "error",
            "the configuration has faults",
            "A daemon that runs keeps its old rules; none starts before they are mended, and agents get an error for "
            "every request. A secret that cannot be looked up is a fault, too. Each names its line, its setting, the "
            "reason and the next step.",
            "`aegis config validate` tells them all; mend the file, then `aegis daemon reload`",
        ),
        Code(
            "config-warning",
            "warning",
            "something in the configuration has no effect, or another one than it seems to have",
            "Each warning names its line, its setting and the next step.",
            "`aegis config validate` tells them all",
        ),
        Code(
            "config-not-in-force",
            "warning",
            "the configuration was changed and is not in force",
            "The daemon goes on with what it read last.",
            "`aegis daemon reload`",
        ),
        Code(
            "config-open",
            "error",
            "other users can change the configuration",
            "Whoever can, makes the rules.",
            "`aegis doctor --fix`, or `chmod go-w …`",
            mends=True,
        ),
        Code(
            "config-secret-open",
            "error",
            "other users can read secrets of the configuration",
            "Tokens in the file itself, or a file that it refers to with `${file:…}`.",
            "`aegis doctor --fix`, or `chmod 600 …`",
            mends=True,
        ),
        # --- clients
        Code(
            "client-stale",
            "error",
            "a wired entry would not reach this daemon",
            "The wrapper or address that it names is gone, or belongs to another installation.",
            "`aegis agents wire`",
        ),
        Code(
            "client-drifted",
            "warning",
            "an entry was edited since it was wired",
            "Where the wrapper was taken out, the server runs without Aegis.",
            "`aegis agents wire` asks what to do; `aegis agents list` shows it",
        ),
        Code(
            "client-missing",
            "warning",
            "an entry that was wired is gone",
            "Somebody removed the server, or its program wrote an old copy of its file back.",
            "add the server again, and `aegis agents wire` it; or have it forgotten: `aegis agents unwire --file FILE "
            "--server NAME`",
        ),
        Code(
            "client-refused",
            "warning",
            "an entry goes through Aegis, and nothing of it passes",
            "The configuration does not know its agent, or not that server of it, so every call is refused.",
            "`aegis setup` makes rules for it; or write it under `agents` by hand",
        ),
        Code(
            "client-address",
            "warning",
            "an entry calls the daemon by its address, and nothing starts the daemon",
            "After a restart of the machine, or a stop, the client finds nobody there until somebody starts the "
            "daemon; an entry that starts `aegis-wrap` has it started.",
            "`aegis daemon install`",
        ),
        Code(
            "client-unwired",
            "warning",
            "a server of a client that uses Aegis does not go through it",
            "Nothing governs or records what the agent does with that server.",
            "`aegis agents wire`",
        ),
        Code(
            "nothing-wired",
            "note",
            "no server of any client goes through Aegis",
            "Agents that speak HTTP need no wiring; all others run their servers without Aegis.",
            "`aegis setup`, or `aegis agents wire`",
        ),
        Code(
            "client-shadowed",
            "error",
            "an ungoverned entry takes the place of a wired one",
            "A project's file wins over the person's own in most clients: in that project the server runs without "
            "Aegis.",
            "`aegis agents wire --file …`, or take the entry out of the project's file",
        ),
        Code(
            "client-twin",
            "warning",
            "the server of a wired entry runs elsewhere without Aegis",
            "The agent may use that way instead. Some clients read other clients' files, too.",
            "`aegis agents wire --file …`",
        ),
        Code(
            "client-dead-file",
            "warning",
            "entries are in a file that no program reads",
            "The path was given by guides and never had an effect.",
            "move the entries to the file that the finding names",
        ),
        Code(
            "client-unreadable",
            "warning",
            "the file of a client is not understood",
            "It is left alone, so its servers are not governed; the client may not read it either.",
            "mend the file at the place that the finding names",
        ),
        Code(
            "client-timeout",
            "warning",
            "a client gives up before the configured hold of an approval ends",
            "The call is not lost (the ticket stays), but the agent sees an error instead of waiting, or being "
            "told to repeat.",
            "lower `approval.hold` or `agents.ID.hold`, or raise the timeout in the client's entry (`aegis agents "
            "wire`)",
        ),
        Code(
            "ledger-unreadable",
            "error",
            "what was wired cannot be read",
            "`undo` needs it. The files as they were are in `backups/` of the state directory.",
            "move `wired.json` away, then `aegis agents wire`",
        ),
        # --- the programs of servers
        Code(
            "command-missing",
            "error",
            "the program of a server is not found",
            "The server cannot start.",
            "install it, or write its whole path into the entry",
        ),
        Code(
            "command-path",
            "warning",
            "a desktop program may not find the program of a server",
            "It is found by the PATH of your shell and not by the one that desktop programs get.",
            "write the whole path (`command -v …`) into the entry, or put the directory on the PATH of your login",
        ),
        Code(
            "runtime-broken",
            "error",
            "a runtime that servers need does not work",
            "It is there, and ends with an error when it is asked for its version.",
            "install it again; the finding shows what it says",
        ),
        Code(
            "runtime-old",
            "warning",
            "a runtime that servers need is older than what they are written for",
            "The official MCP SDKs need Node 18 and Python 3.10 at least; servers end at once on older ones.",
            "install a newer one",
        ),
        Code(
            "docker-away",
            "warning",
            "servers run in containers and the container engine does not answer",
            "They cannot start.",
            "start it, or see `docker info`",
        ),
        # --- the machine
        Code(
            "clock-behind",
            "warning",
            "the clock is behind the times of Aegis' own files",
            "It was set back, or stood wrong before. Limits never open early because of it; times in the log and "
            "the ends of approvals may be odd.",
            "set the clock (`timedatectl set-ntp true`)",
        ),
        Code(
            "clock-jumped",
            "note",
            "the clock was set back while the log was written",
            "Limits do not open early because of it. Times in the log are not in order there; its records are.",
            "nothing, unless it repeats: then see to the clock of the machine",
        ),
        Code(
            "disk-full",
            "error",
            "the disk of the log is full, or nearly so",
            "Without room for its record no call is executed.",
            "make room; `aegis audit purge --before 90d` removes old records",
        ),
        Code(
            "disk-low",
            "warning",
            "the disk of the log has little room left",
            "When it is full no call is executed.",
            "make room; `aegis audit purge --before 90d` removes old records",
        ),
        Code(
            "disk-unsafe",
            "error",
            "the disk of the log cannot be written, or does not sync",
            "A record that is not durable cannot be relied on, so no call is executed.",
            "the finding says what failed; check the disk and its mount options",
        ),
        Code(
            "disk-shared",
            "warning",
            "the state is on a network file system",
            "Locks and SQLite are not reliable there.",
            "set AEGIS_HOME, or XDG_STATE_HOME, to a directory on a local disk",
        ),
        Code(
            "disk-memory",
            "warning",
            "the state is in memory, and gone with the next start of the machine",
            "The log, limits, approvals and trusted tools would be lost.",
            "set AEGIS_HOME, or XDG_STATE_HOME, to a directory on a disk",
        ),
        # --- the log
        Code(
            "log-changed",
            "error",
            "the log is not what was written",
            "A record was changed, removed or added, or a signed checkpoint does not cover what is there.",
            "`aegis audit verify` says where; keep `audit.db` (with `-wal` and `-shm`) as evidence and move them away",
        ),
        Code(
            "log-unwell",
            "error",
            "the daemon cannot write its log",
            "No call is executed without a record.",
            "the finding says why; most often the disk is full",
        ),
        Code(
            "log-unreadable",
            "error",
            "the log cannot be read",
            "The store is damaged, or of another version of Aegis.",
            "the finding says why; `aegis audit verify` tells more",
        ),
        Code(
            "log-unsigned",
            "warning",
            "nothing of the log is signed",
            "Whoever has the file could write all of it anew. A running daemon signs every ten seconds.",
            "`aegis logs` says why it does not sign; `aegis audit key` shows the key",
        ),
        # --- doctor itself
        Code(
            "check-unfinished",
            "warning",
            "something could not be checked",
            "A file or program did not answer in time, or the check itself has a fault. Nothing is said about "
            "what it looks at.",
            "repeat it; with AEGIS_DEBUG=1 a fault is shown whole",
        ),
    )
}
"""By name, in the order in which findings are shown."""
