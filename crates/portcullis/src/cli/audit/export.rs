//! Writing records down for others.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use access::audit::{ExportLine, ocsf};
use access::codes::TAMPERED;
use tlog::View;
use tlog::merkle::{leaf_hash, verify_inclusion};

use super::server::{Shown, Tiles, each, follows, seal};
use super::{failed, tampered};
use crate::args::{ExportFormat, Globals};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{say, try_println};

/// Where lines go to. A file comes to its name when it is whole.
enum Sink<'a> {
    Output,
    File {
        path: &'a Path,
        staged: PathBuf,
        file: BufWriter<File>,
    },
}

impl<'a> Sink<'a> {
    fn open(path: Option<&'a Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Output) };
        let staged = beside(path, "part");
        let file = File::create(&staged).map_err(|error| Failure::file("writing", &staged, &error))?;
        let file = BufWriter::new(file);
        Ok(Self::File { path, staged, file })
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self {
            Self::Output => {
                try_println(line);
                Ok(())
            }
            Self::File { staged, file, .. } => {
                writeln!(file, "{line}").map_err(|error| Failure::file("writing", staged, &error))
            }
        }
    }

    fn finish(self) -> Result<(), Failure> {
        let Self::File { path, staged, file } = self else {
            return Ok(());
        };
        let written = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let written = written
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&staged, path));
        written.map_err(|error| Failure::file("writing", path, &error))
    }
}

/// A file that belongs to `path`.
pub fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

pub async fn run(
    globals: &Globals,
    format: ExportFormat,
    file: Option<&Path>,
    filter: &str,
) -> Result<ExitCode, Failure> {
    let kept = file
        .map(|file| beside(file, "checkpoint"))
        .filter(|kept| kept.exists());
    let view = match (format, &kept) {
        (ExportFormat::Ocsf, None) => None,
        _ => Some(seal(globals, None).await?),
    };
    if let (Some(view), Some(kept)) = (&view, &kept) {
        may_replace(globals, kept, view).await?;
    }
    let mut sink = Sink::open(file)?;
    let (mut count, mut unproven) = (0_u64, Vec::new());
    if let (Some(view), ExportFormat::Jsonl) = (&view, format) {
        each(&view.files().0, "sequence", filter, async |shown| {
            // What was sealed since the checkpoint is for the next export.
            let Some(line) = proven(view, shown).await? else {
                return Ok(());
            };
            count += 1;
            if !holds(view, &line) {
                unproven.push(format!("{} (sequence {})", line.record.id, line.sequence));
            }
            sink.line(&line.render())
        })
        .await?;
        if let Some(file) = file {
            text(&beside(file, "checkpoint"), &view.checkpoint().note)?;
            text(&beside(file, "pub"), &view.verifier().pem())?;
        }
    } else {
        let client = Client::new(globals)?;
        each(&client, "sequence", filter, async |shown| {
            count += 1;
            let sequence = shown.place();
            sink.line(&ocsf(&shown.record(), sequence).to_string())
        })
        .await?;
    }
    sink.finish()?;
    if let (Some(file), false) = (file, globals.quiet) {
        say(&format!("{count} records are in {}", file.display()));
    }
    if unproven.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(tampered(format!(
        "written, and not what was sealed: {}",
        unproven.join(", ")
    )))
}

/// An export that is there is the evidence against a trail that does not go on from it, and is not replaced by that.
async fn may_replace(globals: &Globals, kept: &Path, view: &View<Tiles>) -> Result<(), Failure> {
    let why = match follows(kept, view).await {
        Ok(None) => return Ok(()),
        Ok(Some(finding)) => finding.detail,
        Err(failure) if failure.code() == TAMPERED.id => failure.line(),
        Err(failure) => return Err(failure),
    };
    let (server, kept) = (&globals.server, kept.display());
    let origin = &view.checkpoint().origin;
    let what =
        format!("nothing was replaced: the trail of {server} ({origin}) does not follow {kept}: {why}");
    Err(tampered(what).with_hint(
        "keep the export that is there as evidence; export under another name to have this trail beside it",
    ))
}

async fn proven(view: &View<Tiles>, shown: Shown) -> Result<Option<ExportLine>, Failure> {
    let Some(sequence) = shown
        .place()
        .filter(|sequence| *sequence < view.checkpoint().size)
    else {
        return Ok(None);
    };
    Ok(Some(ExportLine {
        sequence,
        record: shown.record(),
        proof: view.path(sequence).await.map_err(failed)?,
    }))
}

fn holds(view: &View<Tiles>, line: &ExportLine) -> bool {
    let checkpoint = view.checkpoint();
    let leaf = leaf_hash(&line.record.leaf());
    verify_inclusion(
        &leaf,
        line.sequence,
        checkpoint.size,
        &line.proof,
        &checkpoint.root,
    )
    .is_ok()
}

fn text(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::file("writing", path, &error))
}
