//! What offline verification and the seal of the audit trail read.

use access::audit::{AuditRecord, ExportLine, ocsf};

/// A line of an exported audit trail reads back as what it says, and a leaf of it as the same record.
pub fn audit_export_line(bytes: &[u8]) {
    if let Ok(line) = ExportLine::parse(bytes) {
        assert_eq!(ExportLine::parse(line.render().as_bytes()).ok(), Some(line));
    }
}

/// A leaf of the audit trail's seal; of every record there is one, which fits a log.
pub fn audit_record(bytes: &[u8]) {
    if let Ok(record) = AuditRecord::parse(bytes) {
        let leaf = record.leaf();
        assert!(leaf.len() <= tlog::tile::ENTRY_BYTES_MAX, "{}", leaf.len());
        assert!(AuditRecord::parse(&leaf).is_ok());
        let _ = ocsf(&record, Some(0)).to_string();
    }
}
