//! What a template may cost, at upload and at each render.

/// The limits of one template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one field's source, and of one partial's.
    pub field_bytes: usize,
    /// Bytes of all sources of a template together.
    pub template_bytes: usize,
    /// Bytes of the data schema as JSON.
    pub schema_bytes: usize,
    /// Subschemas of the data schema with all its references expanded.
    pub schema_nodes: u64,
    /// Tags (`{{...}}`) of one field.
    pub tags: usize,
    /// Blocks, else-branches, partials and subexpressions within one another.
    pub nesting: usize,
    /// Elements of one field with its partials expanded.
    pub elements: usize,
    /// Translations.
    pub locales: usize,
    /// Partials.
    pub partials: usize,
    /// The longest dedupe window, in seconds.
    pub dedupe_window_s: u64,
    /// Bytes of one rendered message, all parts together.
    pub output_bytes: usize,
    /// Iterations of all `each` blocks of one rendered message together.
    pub iterations: u32,
    /// Work of one rendered message. A unit is one step or sixteen bytes looked at, at most some 10 ns, so a million
    /// of them is the limit of 10 ms. It is counted instead of timed so that the same message ends the same way on
    /// a busy machine.
    pub work_units: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            field_bytes: 128 * 1024,
            template_bytes: 1024 * 1024,
            schema_bytes: 64 * 1024,
            schema_nodes: 10_000,
            tags: 1_024,
            nesting: 32,
            elements: 8_192,
            locales: 64,
            partials: 64,
            dedupe_window_s: 30 * 86_400,
            output_bytes: 256 * 1024,
            iterations: 10_000,
            work_units: 1_000_000,
        }
    }
}
