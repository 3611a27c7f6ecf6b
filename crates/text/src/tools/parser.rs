//! From the text of a reply, piece by piece, to what it says.

use super::call::{Call, News};
use super::detect::{ReasoningTags, Thinking};
use super::scanner::Broken;
use super::{FENCE, ToolFormat};

/// Bytes of a frame between its mark and a call, or between two calls, at most.
const MAX_FRAME: usize = 512;

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEvent {
    Content(String),
    Reasoning(String),
    /// Calls are numbered from 0, in the order of their start.
    CallStart {
        index: usize,
        name: String,
    },
    /// A piece of the arguments' JSON. All pieces of a call that ends are one JSON object.
    CallArguments {
        index: usize,
        fragment: String,
    },
    CallEnd {
        index: usize,
    },
    /// A call that was started turned out to be none: `text` is all of it as it was written. Who has told the call's
    /// pieces cannot take them back; who has not should tell the text as content.
    CallBroken {
        index: usize,
        text: String,
    },
}

/// Parses a reply. What it gives does not depend on how the text was cut into pieces.
///
/// - Without calls and reasoning every byte is content.
/// - What cannot become a call is content, at once; what may become one is held back.
/// - The space before a call, between calls and after the last one belongs to the calls. So do line feeds around
///   reasoning and before the content that follows it.
#[derive(Clone, Debug)]
pub struct ReplyParser {
    format: Option<ToolFormat>,
    tags: Option<ReasoningTags>,
    /// Names that an unmarked call may have.
    names: Vec<String>,
    state: State,
    /// Space that is content unless a call or the end of the reasoning follows.
    space: String,
    /// What may be the start of a mark.
    partial: String,
    /// The text since the frame of a call began, or since its last call ended.
    raw: String,
    /// Where in it the mark ends.
    body: usize,
    /// Nothing but spaces stands between the start of the line and here.
    line_start: bool,
    /// Nothing but space stands between the last call and here.
    after_call: bool,
    /// Line feeds here belong to the reasoning's frame.
    skip_feeds: bool,
    calls: usize,
    events: Vec<ReplyEvent>,
}

#[derive(Clone, Debug)]
enum State {
    /// Only space so far; reasoning may begin.
    Start,
    Reasoning,
    Content,
    /// Before or within a call.
    Call(Box<Call>, Frame),
    /// Behind a call whose frame is open.
    After(Frame),
    /// After `[TOOL_CALLS]`.
    Header,
    /// In the line that opens a fence.
    FenceLine,
}

/// What stands around a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Nothing.
    Bare,
    /// A mark before it.
    Mark,
    Tag,
    List,
    Fence,
}

impl ReplyParser {
    /// `format`: none looks for no calls. `tags`: none looks for no reasoning. `names`: the functions of the request.
    pub fn new(
        format: Option<ToolFormat>,
        tags: Option<ReasoningTags>,
        names: Vec<String>,
        thinking: Thinking,
    ) -> Self {
        let thinking = thinking == Thinking::Begun;
        let state = match tags {
            Some(_) if thinking => State::Reasoning,
            Some(_) => State::Start,
            None => State::Content,
        };
        ReplyParser {
            format,
            tags,
            names,
            state,
            space: String::new(),
            partial: String::new(),
            raw: String::new(),
            body: 0,
            line_start: true,
            after_call: false,
            skip_feeds: tags.is_some() && thinking,
            calls: 0,
            events: Vec::new(),
        }
    }

    /// The events that became certain with this text.
    pub fn push(&mut self, delta: &str) -> Vec<ReplyEvent> {
        if self.format.is_none() && matches!(self.state, State::Content) && !self.skip_feeds {
            self.content(delta);
        } else {
            delta.chars().for_each(|c| self.take(c));
        }
        std::mem::take(&mut self.events)
    }

    /// The rest, at the end of the reply.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Call(call, _) => self.give_up(&call),
            State::Header | State::FenceLine => self.abandon(),
            // The call stands, though the frame lacks its end.
            State::After(_) => self.leave_frame(),
            State::Reasoning => {
                let rest = std::mem::take(&mut self.partial);
                let space = std::mem::take(&mut self.space);
                if !rest.is_empty() {
                    self.reasoning(&space);
                    self.reasoning(&rest);
                }
            }
            State::Start | State::Content => {}
        }
        let rest = std::mem::take(&mut self.space) + &std::mem::take(&mut self.partial);
        if !(self.after_call && rest.trim().is_empty()) {
            self.content(&rest);
        }
        std::mem::take(&mut self.events)
    }

    fn take(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Start => self.start(c),
            State::Reasoning => self.in_reasoning(c),
            State::Content => self.in_content(c),
            State::Call(call, frame) => self.in_call(call, frame, c),
            State::After(frame) => self.after(frame, c),
            State::Header => self.header(c),
            State::FenceLine => self.fence_line(c),
        }
    }

    fn start(&mut self, c: char) {
        let Some(tags) = self.tags else { return self.in_content(c) };
        if self.partial.is_empty() && c.is_whitespace() {
            self.space.push(c);
            self.state = State::Start;
            return;
        }
        self.partial.push(c);
        if tags.open == self.partial {
            self.space.clear();
            self.partial.clear();
            self.skip_feeds = true;
            self.state = State::Reasoning;
        } else if tags.open.starts_with(&self.partial) {
            self.state = State::Start;
        } else {
            let text = std::mem::take(&mut self.space) + &std::mem::take(&mut self.partial);
            text.chars().for_each(|c| self.take(c));
        }
    }

    fn in_reasoning(&mut self, c: char) {
        let Some(tags) = self.tags else { return self.in_content(c) };
        self.state = State::Reasoning;
        if self.partial.is_empty() && c == '\n' {
            if !self.skip_feeds {
                self.space.push(c);
            }
            return;
        }
        self.partial.push(c);
        if tags.close == self.partial {
            self.space.clear();
            self.partial.clear();
            self.skip_feeds = true;
            self.state = State::Content;
        } else if !tags.close.starts_with(&self.partial) {
            // The mark's first character comes but once in it, so that what failed is reasoning up to the last one.
            self.skip_feeds = false;
            let space = std::mem::take(&mut self.space);
            self.reasoning(&space);
            let mut failed = std::mem::take(&mut self.partial);
            let last = failed.pop();
            self.reasoning(&failed);
            match last {
                Some(c) if failed.is_empty() => self.reasoning(c.encode_utf8(&mut [0; 4])),
                Some(c) => self.in_reasoning(c),
                None => {}
            }
        }
    }

    fn in_content(&mut self, c: char) {
        let Some(format) = self.format else {
            if c == '\n' && self.skip_feeds {
                return;
            }
            self.skip_feeds = false;
            return self.content(c.encode_utf8(&mut [0; 4]));
        };
        self.skip_feeds &= c == '\n';
        if self.partial.is_empty() {
            let separates = self.after_call && format == ToolFormat::Llama3 && c == ';';
            if c.is_whitespace() || separates {
                if !self.skip_feeds {
                    self.space.push(c);
                }
                self.line_start |= c == '\n';
                return;
            }
            if c == '{' && format.bare() && self.line_start {
                self.open_frame();
                self.in_call(Box::new(Call::object()), Frame::Bare, c);
                return;
            }
        }
        self.partial.push(c);
        let mark = format.mark();
        let here = mark != FENCE || self.line_start;
        if here && mark == self.partial {
            self.open_frame();
            self.state = match format {
                ToolFormat::Hermes => State::Call(Box::new(Call::object()), Frame::Tag),
                ToolFormat::Llama3 => State::Call(Box::new(Call::object()), Frame::Mark),
                ToolFormat::Mistral => State::Header,
                ToolFormat::Generic => State::FenceLine,
            };
        } else if !(here && mark.starts_with(&self.partial)) {
            let mut failed = std::mem::take(&mut self.space) + &std::mem::take(&mut self.partial);
            let last = failed.pop();
            let refeed = !failed.trim().is_empty();
            if refeed {
                self.content(&failed);
            }
            match last {
                Some(c) if refeed => self.in_content(c),
                Some(c) => self.content(&(failed + c.encode_utf8(&mut [0; 4]))),
                None => {}
            }
        }
    }

    /// Begins the frame of a call: the space before it and the mark are a part of it.
    fn open_frame(&mut self) {
        self.raw = std::mem::take(&mut self.space) + &std::mem::take(&mut self.partial);
        self.body = self.raw.len();
    }

    fn in_call(&mut self, mut call: Box<Call>, frame: Frame, c: char) {
        let mut news = Vec::new();
        // What is marked as a call is one; other JSON is one only if it names a function of the request.
        let anything = matches!(frame, Frame::Mark | Frame::Tag | Frame::List);
        let names = &self.names;
        let known = |name: &str| anything || names.iter().any(|n| n == name);
        let result = call.push(c, &known, &mut news);
        for news in news {
            let event = match news {
                News::Name(name) => ReplyEvent::CallStart { index: self.calls, name },
                News::Arguments(fragment) => ReplyEvent::CallArguments { index: self.calls, fragment },
            };
            tell(&mut self.events, event);
        }
        match result {
            Ok(false) => {
                self.raw.push(c);
                self.state = State::Call(call, frame);
            }
            Ok(true) => {
                self.raw.clear();
                self.events.push(ReplyEvent::CallEnd { index: self.calls });
                self.calls += 1;
                (self.after_call, self.line_start) = (true, true);
                self.state = match frame {
                    Frame::Bare | Frame::Mark => State::Content,
                    frame => State::After(frame),
                };
            }
            Err(Broken) => {
                self.give_up(&call);
                self.take(c);
            }
        }
    }

    /// What was taken for a call is none.
    fn give_up(&mut self, call: &Call) {
        if call.is_told() {
            let text = std::mem::take(&mut self.raw);
            self.note_line(&text);
            self.events.push(ReplyEvent::CallBroken { index: self.calls, text });
            self.calls += 1;
            self.after_call = false;
        } else {
            self.abandon();
        }
    }

    fn abandon(&mut self) {
        let text = std::mem::take(&mut self.raw);
        self.content(&text);
    }

    /// The frame ends without its end: what stands behind its last call is content, or another call.
    fn leave_frame(&mut self) {
        let text = std::mem::take(&mut self.raw);
        self.state = State::Content;
        text.chars().for_each(|c| self.take(c));
    }

    fn after(&mut self, frame: Frame, c: char) {
        self.raw.push(c);
        let text = self.raw.trim_start();
        let end = match frame {
            Frame::Tag => "</tool_call>",
            Frame::List => "]",
            Frame::Fence => FENCE,
            Frame::Bare | Frame::Mark => "",
        };
        self.state = State::After(frame);
        match (frame, text) {
            (Frame::List, ",") => self.state = State::Call(Box::new(Call::object()), frame),
            (Frame::Fence, "{") => {
                self.raw.pop();
                self.in_call(Box::new(Call::object()), frame, c);
            }
            (_, text) if text == end => {
                self.raw.clear();
                self.state = State::Content;
            }
            (_, text) if end.starts_with(text) && self.raw.len() < MAX_FRAME => {}
            _ => self.leave_frame(),
        }
    }

    /// `[`, an object, or `name[CALL_ID]id[ARGS]{`, of which all but the name may be missing.
    fn header(&mut self, c: char) {
        let header = self.raw[self.body..].trim_start();
        match c {
            '[' if header.is_empty() => self.state = State::Call(Box::new(Call::object()), Frame::List),
            '{' if header.is_empty() => return self.in_call(Box::new(Call::object()), Frame::List, c),
            '{' => {
                let Some(name) = named(header.trim_end()) else {
                    self.abandon();
                    return self.take(c);
                };
                let call = Call::arguments_of(name);
                return self.in_call(Box::new(call), Frame::Mark, c);
            }
            _ if self.raw.len() - self.body >= MAX_FRAME
                || !(c.is_alphanumeric() || c.is_whitespace() || "_-.:/[]".contains(c)) =>
            {
                self.abandon();
                return self.take(c);
            }
            _ => self.state = State::Header,
        }
        self.raw.push(c);
    }

    /// The rest of the line that opens a fence: nothing, or a word that calls may have there.
    fn fence_line(&mut self, c: char) {
        let word = &self.raw[self.body..];
        if c == '\n' && ["", "json", "tool_call"].contains(&word) {
            self.raw.push(c);
            self.state = State::Call(Box::new(Call::object()), Frame::Fence);
        } else if c == '\n' || word.len() > "tool_call".len() {
            self.abandon();
            self.take(c);
        } else {
            self.raw.push(c);
            self.state = State::FenceLine;
        }
    }

    fn content(&mut self, text: &str) {
        if !text.is_empty() {
            self.note_line(text);
            self.after_call = false;
            tell(&mut self.events, ReplyEvent::Content(text.to_owned()));
        }
    }

    fn note_line(&mut self, text: &str) {
        let line = text.rfind('\n').map(|at| &text[at..]);
        self.line_start = line.map_or(self.line_start && text.trim().is_empty(), |line| line.trim().is_empty());
    }

    fn reasoning(&mut self, text: &str) {
        if !text.is_empty() {
            tell(&mut self.events, ReplyEvent::Reasoning(text.to_owned()));
        }
    }
}

/// The name in `name`, `name[ARGS]` or `name[CALL_ID]id[ARGS]`.
fn named(header: &str) -> Option<&str> {
    let name = match header.strip_suffix("[ARGS]") {
        Some(rest) => rest.split_once("[CALL_ID]").map_or(rest, |(name, _)| name),
        None => header,
    };
    let name = name.trim_end();
    let sound = |c: char| !c.is_whitespace() && c != '[' && c != ']';
    (!name.is_empty() && name.chars().all(sound)).then_some(name)
}

/// Adds an event; neighbours of one kind become one.
fn tell(events: &mut Vec<ReplyEvent>, event: ReplyEvent) {
    use ReplyEvent::{CallArguments, Content, Reasoning};
    match (events.last_mut(), event) {
        (Some(Content(text)), Content(more)) | (Some(Reasoning(text)), Reasoning(more)) => text.push_str(&more),
        (Some(CallArguments { index, fragment }), CallArguments { index: same, fragment: more }) if *index == same => {
            fragment.push_str(&more);
        }
        (_, event) => events.push(event),
    }
}
