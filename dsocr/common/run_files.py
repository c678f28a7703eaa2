"""Names of all files that this project writes into run, adapter, evaluation and dataset folders."""

# A run folder.
LOG_NAME = "run.log"
# Trainer's upload leaves out names with an underscore in front.
LOCK_NAME = "_run.lock"
RESULTS_NAME = "ocr_results.json"
DATA_SUMMARY_NAME = "data_summary.json"
SKIPPED_NAME = "skipped_samples.json"
REPLAY_ANSWERS_NAME = "replay_answers.jsonl"
REPORT_HTML, REPORT_MARKDOWN = "report.html", "report.md"
EXAMPLES_NAME = "examples.png"
EVALUATION_EXAMPLES_NAME = "evaluation_examples.png"
GALLERY_FOLDER, GALLERY_INDEX = "gallery", "gallery.json"
VISION_CACHE_FOLDER = "vision_features"
BASE_MODEL_FOLDER = "base_model"
DEMO_DATA_FOLDER = "demo_data"

# Names chosen by transformers' Trainer; resuming and the report look for them.
TRAINER_STATE_NAME = "trainer_state.json"
CHECKPOINT_PATTERN = "checkpoint-*"

# An adapter folder.
ADAPTER_CARD_NAME = "dsocr_adapter.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
PROCESSOR_NAME = "processor_config.json"
MODEL_CARD_NAME = "README.md"

# An evaluation folder.
EVALUATION_NAME = "evaluation.json"

# A dataset folder.
METADATA_NAME = "metadata.jsonl"
IMAGES_FOLDER = "images"
DOCTOR_JSON, DOCTOR_HTML = "doctor.json", "doctor.html"
