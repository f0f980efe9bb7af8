//! Codes of the command line and the configuration.

use kernel::Code;

pub const CONFIG: Code = Code {
    id: "PC1701",
    title: "the configuration is not valid",
    explanation: "portcullis.toml has an unknown key, a value of the wrong kind, or two values that contradict \
each other. The configuration is checked whole before anything starts.",
    hint: "mend what the cause names; portcullis init --help says how to write a commented example, and portcullis config \
check tells whether all is well",
};
pub const LISTEN: Code = Code {
    id: "PC1702",
    title: "the address cannot be listened on",
    explanation: "The port is in use, or the address is not one of this machine.",
    hint: "choose another with --listen ADDRESS:PORT",
};
pub const INSECURE: Code = Code {
    id: "PC1703",
    title: "plain HTTP is only for loopback",
    explanation: "The server speaks plain HTTP. On an address that others reach, tokens could be read on the way. \
Put a proxy that speaks TLS before it and say so.",
    hint: "listen on 127.0.0.1, or give --insecure-http if a proxy speaks TLS",
};
pub const SERVER: Code = Code {
    id: "PC1704",
    title: "the server does not answer",
    explanation: "The command could not reach the server, or something else answered at its address. Nothing is \
known about what was asked: this is neither a yes nor a no.",
    hint: "check --server or PORTCULLIS_SERVER, and that `portcullis serve` runs",
};
pub const SECRETS: Code = Code {
    id: "PC1705",
    title: "the server's own secrets cannot be read",
    explanation: "The log's key and the password of the signing keys lie in the data folder under secrets/, \
readable by the server's user only. One is missing, damaged, unreadable or another server's; without the log's key \
the server would become another log, and with another password it could open no signing key, so it does not start.",
    hint: "put the file that the cause names back from a backup: it lies in secrets/ of the data folder, or where \
`log.key_file`, `audit.key_file` or `keys.password_file` say",
};
pub const OUTPUT: Code = Code {
    id: "PC1710",
    title: "the output could not be written",
    explanation: "The command did its work to the end, but what it printed is lost, in part or whole: the disk is \
full, or the device failed. The exit code is the command's own, or 1 if that would be 0. A token that was lost this way \
is good all the same: find it with portcullis token list and end it with portcullis token revoke.",
    hint: "make room or print elsewhere, and run it again",
};
pub const USAGE: Code = Code {
    id: "PC1711",
    title: "the command line cannot be meant",
    explanation: "An argument is missing, unknown, has no such form, or contradicts another. Nobody was asked and \
nothing was done: exit code 2.",
    hint: "--help after the command shows what it takes",
};
pub const FILE: Code = Code {
    id: "PC1712",
    title: "a file cannot be read or written",
    explanation: "A file or folder that the command line or the configuration names is not there, is not this \
user's to read or write, or its disk is full or broken. The cause names it and what the system said.",
    hint: "check that the path is the one you mean, and its owner and mode: ls -l PATH",
};
pub const CONTENT: Code = Code {
    id: "PC1713",
    title: "what is read there is not what belongs there",
    explanation: "A file or an answer could be read, but it does not parse as what it should be: YAML, JSON, a \
key, a bundle. The cause names it and the place.",
    hint: "check that it is the file you mean; the cause says where it stops making sense",
};
pub const MACHINE: Code = Code {
    id: "PC1714",
    title: "this machine did not do its part",
    explanation: "Something that the operating system or a library does for every program failed: starting a \
process or thread, finding an address, waiting for a signal, opening a folder. The cause says which.",
    hint: "check free memory, disk space and open files (ulimit -n) of this machine; if all is well, report it \
with the cause",
};
pub const NO_CODE: Code = Code {
    id: "PC1715",
    title: "there is no such code",
    explanation: "Codes are PC and four digits. One that this version does not know may be of another version of \
the server.",
    hint: "portcullis explain lists them; compare portcullis version with the server's",
};
pub const NO_DATA: Code = Code {
    id: "PC1716",
    title: "no server has used this data",
    explanation: "A command that works on a stopped server's data found none: the folder has no lock file, or the \
database no token. Nothing was made there.",
    hint: "name the server's own --data DIR or --config FILE; `portcullis serve` prints the first token itself",
};
pub const STANDS: Code = Code {
    id: "PC1717",
    title: "the file is there already",
    explanation: "The command makes a new file and never writes over one. It was left as it is: exit code 7.",
    hint: "name another file, or move that one away",
};
pub const DEMO: Code = Code {
    id: "PC1718",
    title: "the demo's server did not do as told",
    explanation: "The demo starts a server as a child process; it did not come up, or answered something else \
than the story needs.",
    hint: "look at server.log in the demo's data folder: portcullis demo --data DIR keeps it",
};
pub const SLOW_TREE: Code = Code {
    id: "PC1719",
    title: "the registry is too slow for what is attached to the image",
    explanation: "The tree shows what was read in time, and calls the rest `not read in time`. Exit code 6.",
    hint: "wait longer with --timeout SECONDS; what nobody needs can be deleted with the registry's own tools",
};
pub const NO_ID_TOKEN: Code = Code {
    id: "PC1720",
    title: "the build system gave this job no token",
    explanation: "No token was given, and the job may ask GitHub Actions for one (ACTIONS_ID_TOKEN_REQUEST_URL is \
set), which did not answer with a token. The server was not asked.",
    hint: "run the job again; it needs `permissions: { id-token: write }`",
};
pub const NOT_VERIFIED: Code = Code {
    id: "PC1301",
    title: "the image is not verified",
    explanation: "Every signature that is attached to the image was looked at and none counts under the policy; \
the reasons are listed, one for each. This is an answer, not a failure to ask: exit code 8.",
    hint: "portcullis image tree REF shows what is attached",
};
pub const BLOB_NOT_VERIFIED: Code = Code {
    id: "PC1302",
    title: "the file is not verified",
    explanation: "The bundle does not sign this file under the policy. Exit code 8.",
    hint: "check that bundle, file and key belong together",
};
pub const ALL: &[&Code] = &[
    &CONFIG,
    &LISTEN,
    &INSECURE,
    &SERVER,
    &SECRETS,
    &OUTPUT,
    &USAGE,
    &FILE,
    &CONTENT,
    &MACHINE,
    &NO_CODE,
    &NO_DATA,
    &STANDS,
    &DEMO,
    &SLOW_TREE,
    &NO_ID_TOKEN,
    &NOT_VERIFIED,
    &BLOB_NOT_VERIFIED,
];
