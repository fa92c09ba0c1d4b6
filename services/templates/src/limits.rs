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
    /// Values of the data schema with all its references expanded. A pattern counts for 64.
    pub schema_nodes: u64,
    /// Tags (`{{...}}`) of one field.
    pub tags: usize,
    /// Tags times bytes, summed over the fields of a template: the parser's time grows with both. The default stands
    /// for some 0.3 s, so compile where blocking does no harm.
    pub parse_work: usize,
    /// Blocks, else-branches, partials and subexpressions within one another.
    pub nesting: usize,
    /// Elements of a template with its partials expanded: tags, arguments, and every 64 bytes of text.
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
    /// Work of one rendered message. A unit is one step or sixteen bytes looked at, at most some 20 ns, so half a million
    /// of them is the limit of 10 ms. It is counted instead of timed so that the same message ends the same way on
    /// a busy machine.
    pub work_units: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            field_bytes: 128 * 1024,
            template_bytes: 1024 * 1024,
            schema_bytes: 64 * 1024,
            schema_nodes: 4_096,
            tags: 1_024,
            parse_work: 256 << 20,
            nesting: 32,
            elements: 65_536,
            locales: 64,
            partials: 64,
            dedupe_window_s: 30 * 86_400,
            output_bytes: 256 * 1024,
            iterations: 10_000,
            work_units: 500_000,
        }
    }
}
