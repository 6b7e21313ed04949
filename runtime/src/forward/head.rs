//! The output head: which rows get all their logits, which only those that can matter, and the phases that find them.
//!
//! A row whose sampler needs only the best tokens goes through the screen (`kernels::screen`): lower bounds of all its
//! logits from an int8 copy of the head, then exact logits of the tokens that could be among the best, minus infinity
//! for the others. Where the screen does not decide, the row gets all its logits after all. Rows that look for the best
//! token only race, where there are many: the workers tell each other which score is known to be reached.
#![expect(unsafe_code, reason = "workers write disjoint parts of shared buffers, see each SAFETY line")]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use kernels::Isa;
use kernels::dense::{self, DenseMatrix};
use kernels::draw::Draw;
use kernels::screen::{self, GROUP_ROWS, Precision, ScreenMatrix, ScreenRow, ScreenRows, Sought};

use super::buffers::{Scratch, UNIT_ROWS_MAX};
use super::pass::{Pass, UNITS_PER_WORKER, unit_rows};
use super::probe::Phase;
use super::{Few, Limits, Logits, Reach, Step};
use crate::model::{HyperParameters, LinearView, Weights};
use crate::shared::{Shared, SharedFrom};
use crate::team::Member;

/// How the rows of the last step got their logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadCounts {
    /// Rows that got all logits at once.
    pub full: usize,
    /// Rows that the screen decided, and the exact logits it took them together.
    pub screened: usize,
    pub exact: usize,
    /// Rows that got all logits since the screen did not decide.
    pub undecided: usize,
}

impl HeadCounts {
    /// Takes in another step.
    pub fn add(&mut self, other: Self) {
        self.full += other.full;
        self.screened += other.screened;
        self.exact += other.exact;
        self.undecided += other.undecided;
    }
}

/// Which entries of a step's `logits` go which way.
#[derive(Debug, Default)]
pub(super) struct HeadPlan {
    full: Vec<usize>,
    screened: Vec<usize>,
    /// What each screened row wants, and its tokens in the step's `also`.
    sought: Vec<(Reach, Range<usize>)>,
    /// Steps that go without the screen, since it decided too little.
    pause: usize,
    /// How the screened rows become int8, and steps that go with two planes, since less left too many tokens.
    precision: Precision,
    careful: usize,
    /// How rows that look for one token become int8, where they race.
    racing: Option<Precision>,
}

/// What the screened rows of a step are kept in; `m` is their number, `n` that of all.
pub(super) struct HeadBuffers {
    /// n x hidden: inputs, the full rows first.
    inputs: Shared<f32>,
    /// m x all planes.
    planes: Shared<i8>,
    rows: Shared<ScreenRow>,
    /// m x most tokens: those that could matter, and how many.
    found: Shared<u32>,
    found_max: usize,
    counts: Shared<u32>,
    /// Of rows that race the greatest bound of each group of tokens, m x groups, and the score that is known to be reached.
    greatest: Shared<f32>,
    least: Box<[AtomicU32]>,
    /// Undecided rows in the order in which they turned up, and their inputs.
    undecided: Shared<usize>,
    again: Shared<f32>,
}

/// The same from one entry of the step's logits on.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    inputs: SharedFrom<'a, f32>,
    planes: SharedFrom<'a, i8>,
    rows: SharedFrom<'a, ScreenRow>,
    found: SharedFrom<'a, u32>,
    found_max: usize,
    counts: SharedFrom<'a, u32>,
    greatest: SharedFrom<'a, f32>,
    least: &'a [AtomicU32],
    undecided: SharedFrom<'a, usize>,
    again: SharedFrom<'a, f32>,
}

impl HeadBuffers {
    pub(super) fn new(params: &HyperParameters, limits: Limits) -> Self {
        let (n, hidden) = (limits.logits_max, params.hidden);
        let found_max = params.vocab / FOUND_SHARE;
        Self {
            inputs: Shared::new(n * hidden),
            planes: Shared::new(n * screen::planes_len(hidden)),
            rows: Shared::new(n),
            found: Shared::new(n * found_max),
            found_max,
            counts: Shared::new(n),
            greatest: Shared::new(n * params.vocab.div_ceil(GROUP_ROWS)),
            least: (0..n).map(|_| AtomicU32::default()).collect(),
            undecided: Shared::new(n),
            again: Shared::new(n * hidden),
        }
    }

    pub(super) fn starting_at(&self, params: &HyperParameters, entry: usize) -> HeadRows<'_> {
        let hidden = params.hidden;
        HeadRows {
            inputs: self.inputs.from(entry * hidden),
            planes: self.planes.from(entry * screen::planes_len(hidden)),
            rows: self.rows.from(entry),
            found: self.found.from(entry * self.found_max),
            found_max: self.found_max,
            counts: self.counts.from(entry),
            greatest: self.greatest.from(entry * params.vocab.div_ceil(GROUP_ROWS)),
            least: &self.least[entry..],
            undecided: self.undecided.from(entry),
            again: self.again.from(entry * hidden),
        }
    }

    /// How many tokens the screened rows of the last step found: those of a step, or of a share, from its first entry on.
    pub(super) fn counts(&mut self) -> &[u32] {
        self.counts.as_mut_slice()
    }
}

impl HeadPlan {
    pub(super) fn with_capacity(logits_max: usize) -> Self {
        let empty = || Vec::with_capacity(logits_max);
        Self {
            full: empty(),
            screened: empty(),
            sought: Vec::with_capacity(logits_max),
            pause: 0,
            precision: Precision::Two,
            careful: 0,
            racing: None,
        }
    }

    /// Decides for every entry of `step.logits`.
    pub(super) fn make(&mut self, isa: Isa, weights: &Weights, step: &Step) {
        self.full.clear();
        self.screened.clear();
        self.sought.clear();
        let usable = weights.screen_rows_min().is_some_and(|min| step.logits.len() >= min) && self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        for (i, wanted) in step.wanted().enumerate() {
            match wanted {
                Some((reach, also)) if usable && reach.count <= weights.params.vocab / GROUP_ROWS / 2 => {
                    self.screened.push(i);
                    self.sought.push((reach, also));
                }
                _ => self.full.push(i),
            }
        }
        if !self.full.is_empty() && self.screened.len() < BESIDE_FULL_MIN {
            self.full.clear();
            self.full.extend(0..step.logits.len());
            self.screened.clear();
        }
        let near = weights.params.vocab * weights.params.hidden <= NEAR_HEAD_MAX;
        let many = self.screened.len() >= OUTLIERS_FROM_ROWS && !near;
        self.racing = screen::racing(isa, weights.params.hidden).filter(|_| many);
        let one_is_enough = many && self.careful == 0;
        self.precision = if one_is_enough { Precision::Outliers } else { Precision::Two };
        self.careful = self.careful.saturating_sub(1);
    }

    /// How screened row `m` becomes int8.
    fn precision(&self, m: usize) -> Precision {
        let (reach, also) = &self.sought[m];
        self.racing.filter(|_| reach.count == 1 && also.is_empty()).unwrap_or(self.precision)
    }

    /// What became of the step; a screen that decides too little rests for a while.
    pub(super) fn count(&mut self, found: &[u32], vocab: usize) -> HeadCounts {
        let mut counts = HeadCounts { full: self.full.len(), ..HeadCounts::default() };
        let mut by_outliers = HeadCounts::default();
        for (m, count) in found[..self.screened.len()].iter().enumerate() {
            let one = match *count {
                UNDECIDED => HeadCounts { undecided: 1, ..HeadCounts::default() },
                exact => HeadCounts { screened: 1, exact: exact as usize, ..HeadCounts::default() },
            };
            counts.add(one);
            if self.precision(m) == Precision::Outliers {
                by_outliers.add(one);
            }
        }
        if by_outliers.undecided > 0 || by_outliers.exact * EXACT_SHARE > by_outliers.screened * vocab {
            self.careful = PAUSE_STEPS;
        } else if counts.undecided > counts.screened {
            self.pause = PAUSE_STEPS;
        }
        counts
    }
}

impl Pass<'_> {
    /// Logits (or hidden states) of the wanted rows, then `each` on every one of them.
    pub(super) fn head(&self, member: Member<'_>, scratch: &mut Scratch) {
        if self.step.logits.is_empty() {
            return;
        }
        if self.weights.params.pooling.is_some() {
            return self.states(member);
        }
        match (self.plan.screened.is_empty(), self.weights.screen(), self.weights.view(self.weights.head())) {
            (false, Some(copy), LinearView::Dense(head)) => self.screened_head(member, scratch, head, copy),
            _ => self.full_head(member, scratch),
        }
        let last = if self.plan.screened.is_empty() { Phase::HeadAll } else { Phase::HeadExact };
        Self::barrier(member, scratch, last);
        while let Some(i) = member.claim(COUNTER_EACH, self.step.logits.len()) {
            // SAFETY: row `i` was claimed by this worker alone, and all its columns are written.
            let logits = unsafe { self.logits.write(i * self.vocab..(i + 1) * self.vocab) };
            (self.told.each)(self.first_logit + i, self.few(i, logits), member.index);
        }
        scratch.lap(Phase::Each);
    }

    /// The normalised hidden states of the wanted rows, in place of logits: an embedding model has no head.
    fn states(&self, member: Member<'_>) {
        let hidden = self.weights.params.hidden;
        while let Some(i) = member.claim(COUNTER_ROWS, self.step.logits.len()) {
            // SAFETY: row `i` was claimed by this worker alone.
            let state = unsafe { self.logits.write(i * hidden..(i + 1) * hidden) };
            self.normalise(&self.head_rows(), i, state);
            (self.told.each)(self.first_logit + i, Logits::All(state), member.index);
        }
    }

    /// What is told of entry `i`, whose place is `logits`.
    fn few<'s>(&'s self, i: usize, logits: &'s mut [f32]) -> Logits<'s> {
        let Ok(m) = self.plan.screened.binary_search(&i) else { return Logits::All(logits) };
        // SAFETY: the counts were written two phases ago.
        let count = unsafe { self.head.counts.read(m..m + 1) }[0];
        if !self.tells_few(m) || count == UNDECIDED {
            return Logits::All(logits);
        }
        let first = m * self.head.found_max;
        // SAFETY: as above.
        let tokens = unsafe { self.head.found.read(first..first + count as usize) };
        Logits::Few(Few { tokens, logits: &logits[..tokens.len()] })
    }

    /// Whether of screened row `m` only what was found is told: its logits are the first ones in their place then, token by
    /// token, and nothing else is written there.
    fn tells_few(&self, m: usize) -> bool {
        self.told.few && self.plan.precision(m).races()
    }

    fn screened_head(&self, member: Member<'_>, scratch: &mut Scratch, head: DenseMatrix<'_>, copy: ScreenMatrix<'_>) {
        self.split_rows(member);
        Self::barrier(member, scratch, Phase::HeadRows);
        self.bound_rows(member, scratch, head, copy);
        Self::barrier(member, scratch, Phase::HeadAll);
        self.select_rows(member, scratch, head, copy);
        Self::barrier(member, scratch, Phase::HeadSelect);
        self.exact_tokens(member, scratch, head);
        self.undecided_rows(member, scratch, head);
    }

    /// Normalises every row, and makes planes of those to be screened.
    fn split_rows(&self, member: Member<'_>) {
        let (HeadPlan { full, screened, .. }, hidden) = (self.plan, self.weights.params.hidden);
        while let Some(place) = member.claim(COUNTER_ROWS, self.step.logits.len()) {
            let i = if place < full.len() { full[place] } else { screened[place - full.len()] };
            // SAFETY: the place was claimed by this worker alone.
            let input = unsafe { self.head.inputs.write(place * hidden..(place + 1) * hidden) };
            self.normalise(&self.head_rows(), i, input);
            if let Some(m) = place.checked_sub(full.len()) {
                let stride = screen::planes_len(hidden);
                // SAFETY: as above, and places and screened rows go together.
                let values = unsafe { self.head.planes.write(m * stride..(m + 1) * stride) };
                // SAFETY: as above.
                let row = unsafe { self.head.rows.write(m..m + 1) };
                row[0] = screen::split(self.isa, input, self.plan.precision(m), values);
                self.head.least[m].store(ordered(f32::NEG_INFINITY), Ordering::Relaxed);
            }
        }
    }

    /// All logits of the full rows, lower bounds of those of the screened ones.
    fn bound_rows(&self, member: Member<'_>, scratch: &mut Scratch, head: DenseMatrix<'_>, copy: ScreenMatrix<'_>) {
        let (HeadPlan { full, screened, .. }, hidden) = (self.plan, self.weights.params.hidden);
        let stride = screen::planes_len(hidden);
        // SAFETY: the phase before wrote inputs, planes and rows; this one only reads them.
        let inputs = unsafe { self.head.inputs.read(0..full.len() * hidden) };
        // SAFETY: as above.
        let planes = unsafe { self.head.planes.read(0..screened.len() * stride) };
        // SAFETY: as above.
        let rows = unsafe { self.head.rows.read(0..screened.len()) };
        scratch.screen.set(self.isa, hidden, ScreenRows { planes, rows });
        for (m, (Reach { distance, draw, .. }, _)) in self.plan.sought.iter().enumerate() {
            scratch.screen.seek(m, *draw, *distance);
        }
        while let Some(run) = self.claim_tokens(member, COUNTER_BOUNDS) {
            let next = run.start + member.team_size() * run.len();
            for range in self.pieces(run, scratch.first.len()) {
                if !full.is_empty() {
                    let out = &mut scratch.first[..full.len() * range.len()];
                    dense::linear(self.isa, head, range.clone(), inputs, out, &mut scratch.dense);
                    self.put(full, range.clone(), out);
                }
                self.bound_piece(scratch, copy, range, next);
            }
        }
    }

    /// Bounds of a piece of a run, behind which the run from token `next` on is likely to come.
    fn bound_piece(&self, scratch: &mut Scratch, copy: ScreenMatrix<'_>, range: Range<usize>, next: usize) {
        let (screened, groups) = (&self.plan.screened, range.start / GROUP_ROWS..range.end.div_ceil(GROUP_ROWS));
        for (m, least) in self.head.least[..screened.len()].iter().enumerate() {
            scratch.screen.learn(m, unordered(least.load(Ordering::Relaxed)));
        }
        let out = &mut scratch.first[..screened.len() * range.len()];
        let greatest = &mut scratch.second[..screened.len() * groups.len()];
        let order = (groups.clone(), next / GROUP_ROWS);
        screen::bounds(self.isa, copy, order, &mut scratch.screen, (&mut *out, &mut *greatest));
        let each = out.chunks_exact(range.len()).zip(greatest.chunks_exact(groups.len()));
        for (m, (bounds, greatest)) in each.enumerate() {
            if !self.plan.precision(m).races() {
                self.put(&screened[m..=m], range.clone(), bounds);
                continue;
            }
            let row = m * self.vocab.div_ceil(GROUP_ROWS);
            // SAFETY: the groups were claimed by this worker alone.
            let to = unsafe { self.head.greatest.write(row + groups.start..row + groups.end) };
            to.copy_from_slice(greatest);
            for ((bounds, greatest), start) in
                bounds.chunks(GROUP_ROWS).zip(greatest).zip(range.clone().step_by(GROUP_ROWS))
            {
                if *greatest > f32::NEG_INFINITY {
                    self.put(&screened[m..=m], start..start + bounds.len(), bounds);
                }
            }
            let least = ordered(scratch.screen.least(m));
            if least > self.head.least[m].load(Ordering::Relaxed) {
                self.head.least[m].fetch_max(least, Ordering::Relaxed);
            }
        }
    }

    /// The tokens of each screened row that could matter.
    fn select_rows(&self, member: Member<'_>, scratch: &mut Scratch, head: DenseMatrix<'_>, copy: ScreenMatrix<'_>) {
        let (screened, hidden, most) = (&self.plan.screened, self.weights.params.hidden, self.head.found_max);
        while let Some(m) = member.claim(COUNTER_SELECT, screened.len()) {
            let i = screened[m];
            let (Reach { count, distance, draw }, also) = self.plan.sought[m].clone();
            // SAFETY: the phase before wrote the rows, this one only reads them.
            let row = unsafe { self.head.rows.read(m..m + 1) };
            // SAFETY: the row was claimed by this worker alone.
            let lower = unsafe { self.logits.write(i * self.vocab..(i + 1) * self.vocab) };
            // SAFETY: as above.
            let found = unsafe { self.head.found.write(m * most..(m + 1) * most) };
            // SAFETY: as above.
            let kept = unsafe { self.head.counts.write(m..m + 1) };
            let count = if row[0].precision().races() {
                let groups = self.vocab.div_ceil(GROUP_ROWS);
                // SAFETY: the phase before wrote the bounds of groups, this one only reads them.
                let greatest = unsafe { self.head.greatest.read(m * groups..(m + 1) * groups) };
                let bound = unordered(self.head.least[m].load(Ordering::Relaxed));
                let reached = self.reached(head, m, draw, screen::likeliest(lower, greatest));
                let least = reached.map_or(bound, |score| bound.max(score));
                let count = screen::select_raced(copy, &row[0], (draw, distance, least), (lower, greatest), found);
                if !self.tells_few(m) {
                    lower.fill(f32::NEG_INFINITY);
                }
                count
            } else {
                let sought = Sought { count, distance, draw, also: &self.step.also[also] };
                screen::select(self.isa, copy, &row[0], sought, lower, found, &mut scratch.select)
            };
            kept[0] = count.map_or(UNDECIDED, |count| u32::try_from(count).expect("a vocabulary has 32-bit ids"));
            if count.is_none() {
                let place = member.claim(COUNTER_UNDECIDED, screened.len()).expect("each row takes one place");
                let from = (self.plan.full.len() + m) * hidden;
                // SAFETY: the phase before wrote the inputs, this one only reads them.
                let input = unsafe { self.head.inputs.read(from..from + hidden) };
                // SAFETY: the place was claimed by this worker alone.
                let again = unsafe { self.head.again.write(place * hidden..(place + 1) * hidden) };
                again.copy_from_slice(input);
                // SAFETY: as above.
                let undecided = unsafe { self.head.undecided.write(place..place + 1) };
                undecided[0] = i;
            }
        }
    }

    /// The exact score of the token that is likely to be the best one of screened row `m`.
    fn reached(&self, head: DenseMatrix<'_>, m: usize, draw: Option<Draw>, token: Option<u32>) -> Option<f32> {
        let (token, hidden) = (token?, self.weights.params.hidden);
        let from = (self.plan.full.len() + m) * hidden;
        // SAFETY: inputs were written two phases ago.
        let input = unsafe { self.head.inputs.read(from..from + hidden) };
        let mut value = [0.0];
        dense::linear_rows(self.isa, head, &[token], input, &mut value);
        Some(screen::score(draw, token, value[0]))
    }

    /// Exact logits of the tokens that were found.
    fn exact_tokens(&self, member: Member<'_>, scratch: &mut Scratch, head: DenseMatrix<'_>) {
        let (HeadPlan { full, screened, .. }, hidden, most) =
            (self.plan, self.weights.params.hidden, self.head.found_max);
        // SAFETY: the phase before wrote the counts, this one only reads them.
        let counts = unsafe { self.head.counts.read(0..screened.len()) };
        let count_of = |m: usize| if counts[m] == UNDECIDED { 0 } else { counts[m] as usize };
        let (mut m, mut before) = (0, 0);
        let pieces = (0..screened.len()).map(|m| count_of(m).div_ceil(EXACT_TOKENS)).sum();
        while let Some(piece) = member.claim(COUNTER_EXACT, pieces) {
            while piece >= before + count_of(m).div_ceil(EXACT_TOKENS) {
                before += count_of(m).div_ceil(EXACT_TOKENS);
                m += 1;
            }
            let first = (piece - before) * EXACT_TOKENS;
            let (from, input) = (m * most + first, (full.len() + m) * hidden);
            // SAFETY: the phase before wrote what was found, this one only reads it.
            let tokens = unsafe { self.head.found.read(from..from + EXACT_TOKENS.min(count_of(m) - first)) };
            // SAFETY: inputs were written two phases ago.
            let input = unsafe { self.head.inputs.read(input..input + hidden) };
            let out = &mut scratch.first[..tokens.len()];
            dense::linear_rows(self.isa, head, tokens, input, out);
            let (row, few) = (screened[m] * self.vocab, self.tells_few(m));
            if few {
                // SAFETY: this piece of the row was claimed by this worker alone.
                let logits = unsafe { self.logits.write(row + first..row + first + tokens.len()) };
                logits.copy_from_slice(out);
                continue;
            }
            for (&token, value) in tokens.iter().zip(out) {
                let at = row + token as usize;
                // SAFETY: a row has each token once, and its piece was claimed by this worker alone.
                let logit = unsafe { self.logits.write(at..at + 1) };
                logit[0] = *value;
            }
        }
    }

    /// All logits of the rows that the screen did not decide.
    fn undecided_rows(&self, member: Member<'_>, scratch: &mut Scratch, head: DenseMatrix<'_>) {
        let (screened, hidden) = (&self.plan.screened, self.weights.params.hidden);
        // SAFETY: the phase before wrote the counts, this one only reads them.
        let counts = unsafe { self.head.counts.read(0..screened.len()) };
        let n = counts.iter().filter(|count| **count == UNDECIDED).count();
        if n == 0 {
            return;
        }
        // SAFETY: the phase before wrote these, this one only reads them.
        let rows = unsafe { self.head.undecided.read(0..n) };
        // SAFETY: as above.
        let inputs = unsafe { self.head.again.read(0..n * hidden) };
        while let Some(run) = self.claim_tokens(member, COUNTER_AGAIN) {
            for range in self.pieces(run, 0) {
                let out = &mut scratch.first[..n * range.len()];
                dense::linear(self.isa, head, range.clone(), inputs, out, &mut scratch.dense);
                self.put(rows, range, out);
            }
        }
    }

    /// The next run of tokens that nobody has claimed: whole groups of the screen, and long, since what is asked for ahead at
    /// its end is another worker's.
    fn claim_tokens(&self, member: Member<'_>, counter: usize) -> Option<Range<usize>> {
        let even = self.vocab.div_ceil(member.team_size() * UNITS_PER_WORKER);
        let unit = even.next_multiple_of(GROUP_ROWS).min(RUN_TOKENS);
        let claimed = member.claim(counter, self.vocab.div_ceil(unit))?;
        Some(claimed * unit..self.vocab.min((claimed + 1) * unit))
    }

    /// A run in pieces of whole groups that are computed at a time: where there are full logits as caches hold them, else as
    /// the scratch of so many floats does.
    fn pieces(&self, run: Range<usize>, scratch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let n = self.step.logits.len();
        let cached = unit_rows(self.vocab, n, 1).next_multiple_of(GROUP_ROWS).min(UNIT_ROWS_MAX);
        let held = if self.plan.full.is_empty() { scratch / n / GROUP_ROWS * GROUP_ROWS } else { 0 };
        let piece = cached.max(held);
        run.clone().step_by(piece).map(move |start| start..run.end.min(start + piece))
    }

    /// Copies `rows.len() x range` values to the columns `range` of these rows of the logits.
    fn put(&self, rows: &[usize], range: Range<usize>, values: &[f32]) {
        for (row, part) in rows.iter().zip(values.chunks_exact(range.len())) {
            let start = row * self.vocab;
            // SAFETY: the columns of `range` were claimed by this worker alone.
            let to = unsafe { self.logits.write(start + range.start..start + range.end) };
            to.copy_from_slice(part);
        }
    }
}

/// Numbers in the order of floats that are no NaN.
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_sign_negative() { !bits } else { bits | SIGN }
}

fn unordered(number: u32) -> f32 {
    f32::from_bits(if number & SIGN == 0 { !number } else { number ^ SIGN })
}

const SIGN: u32 = 1 << 31;
/// The count of a row that the screen did not decide.
const UNDECIDED: u32 = u32::MAX;
/// Tokens that a worker claims at a time. Every second run, 32 rows, 64128 tokens in all: 24.8 ms in runs of 128, 23.5 of 256, 22.7
/// of 512.
const RUN_TOKENS: usize = 512;
/// Tokens of a unit of exact logits.
const EXACT_TOKENS: usize = 32;
/// At most one token in so many is computed exactly: more cost as much as the full head does.
const FOUND_SHARE: usize = 16;
/// Beside rows that need the full head anyway, fewer screened rows than this are cheaper as part of it.
const BESIDE_FULL_MIN: usize = 6;
/// From so many rows on, int8 products take longer than the copy of the head takes to come, so rows go in one plane and
/// outliers; below, a second whole plane costs nothing. Of a 2B model's 128256 tokens two planes leave 240 to 430, one
/// plane whose step the outliers widen 3300.
const OUTLIERS_FROM_ROWS: usize = 8;
/// Heads up to this lie in a second-level cache: what rows cost there is to be split, not multiplied. (16 rows of 1024 tokens
/// and hidden 256 take a worker 0.06 ms of a step with two planes, 0.07 refined.)
const NEAR_HEAD_MAX: usize = 512 << 10;
/// One exact token in so many costs about what the second plane does.
const EXACT_SHARE: usize = 64;
/// How long a screen that decides less than half of its rows rests.
const PAUSE_STEPS: usize = 31;

const COUNTER_ROWS: usize = 1;
const COUNTER_BOUNDS: usize = 2;
const COUNTER_SELECT: usize = 3;
const COUNTER_UNDECIDED: usize = 4;
const COUNTER_EXACT: usize = 5;
const COUNTER_AGAIN: usize = 6;
const COUNTER_EACH: usize = 7;
pub(super) const COUNTERS_AROUND: usize = 8;
