const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The last second of the year 9999.
const END: u64 = 253_402_300_799;

/// C's `strftime` for a time in seconds since 1970 (UTC, C locale). Unknown conversions stay as they are.
pub(crate) fn strftime(format: &str, unix: u64) -> String {
    let unix = unix.min(END);
    let (days, second) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (days + 4) % 7;
    let yearday = days - days_before(year) + 1;
    let hour12 = (hour + 11) % 12 + 1;
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[weekday as usize];

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('C') => out += &format!("{:02}", year / 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('j') => out += &format!("{yearday:03}"),
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{hour12:02}"),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('w') => out += &weekday.to_string(),
            Some('u') => out += &((weekday + 6) % 7 + 1).to_string(),
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => out += &format!("{hour:02}:{minute:02}"),
            Some('D' | 'x') => out += &format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('X') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('s') => out += &unix.to_string(),
            Some('f') => out += "000000",
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            // The GNU flag for no padding.
            Some('-') => match chars.next() {
                Some('d' | 'e') => out += &day.to_string(),
                Some('m') => out += &month.to_string(),
                Some('H') => out += &hour.to_string(),
                Some('I') => out += &hour12.to_string(),
                Some('M') => out += &minute.to_string(),
                Some('S') => out += &second.to_string(),
                Some('j') => out += &yearday.to_string(),
                other => {
                    out.push_str("%-");
                    out.extend(other);
                }
            },
            other => {
                out.push('%');
                out.extend(other);
            }
        }
    }
    out
}

/// Days from 1970-01-01 to the first of January of a year not before 1970, Gregorian calendar.
fn days_before(year: u64) -> u64 {
    let y = year - 1;
    365 * (year - 1970) + (y / 4 - y / 100 + y / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// (year, month, day) of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before(year);
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %p %I %y %e %-d %% %F %T %w %u";
        // GNU date -u -d @N +FORMAT
        assert_eq!(
            strftime(all, 0),
            "1970-01-01 00:00:00 Thu Thursday Jan January 001 AM 12 70  1 1 % 1970-01-01 00:00:00 4 4"
        );
        assert_eq!(
            strftime(all, 1_709_251_199),
            "2024-02-29 23:59:59 Thu Thursday Feb February 060 PM 11 24 29 29 % 2024-02-29 23:59:59 4 4"
        );
        assert_eq!(strftime("%d %b %Y", 4_102_444_800), "01 Jan 2100");
        assert_eq!(strftime("%F %u", u64::MAX), "9999-12-31 5");
        assert_eq!(strftime("%Q 100%", 0), "%Q 100%");
    }
}
