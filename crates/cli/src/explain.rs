//! `weft explain`.

use weft_model::{Code, UserError, codes};

use crate::{OK, out};

/// Prints the explanation of a code, or all codes.
pub(crate) fn run(code: Option<&str>) -> Result<u8, UserError> {
    match code {
        Some(text) => {
            let code: Code = text.parse().map_err(|error: weft_model::error::UnknownCode| {
                UserError::new(codes::OUT_OF_RANGE, error.to_string(), "weft explain")
            })?;
            out::line(out::tone(&format!("{code}: {}", code.title()), out::Tone::Strong));
            out::line("");
            out::paragraph(code.explanation());
        }
        None => {
            let rows = Code::ALL
                .iter()
                .map(|code| vec![code.to_string().into(), code.title().into()])
                .collect();
            out::table(&["code", "meaning"], rows);
        }
    }
    Ok(OK)
}
