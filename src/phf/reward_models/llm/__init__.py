"""Language models as judges: `llm:RUBRIC`, whose answers are paid for once (docs/llm_judges.md)."""
