"""Every metric the daemon shows, in one table: name, help, labels, and how it is read."""

from __future__ import annotations

from typing import get_args

from quietbeam.core.events import RejectReason
from quietbeam.pipeline.alarms import ALARMS
from quietbeam.pipeline.shed import LIMITS, STATES
from quietbeam.service import metrics_read as read
from quietbeam.service.live_model import SWAP_RESULTS
from quietbeam.service.metrics_read import Family, at, counter, gauge

RELOAD_RESULTS = ("applied", "unchanged", "restart_required", "failed")

FAMILIES: tuple[Family, ...] = (
    # the source
    counter(
        "frames_received_total",
        "Frames the source gave.",
        ("source",),
        lambda s: [
            ((str(s["source"]["kind"]),), float(at(s, ("ledger", "ingest", "received")) or 0))
        ],
    ),
    counter(
        "received_bytes_total",
        "Bytes of pixels the source gave.",
        (),
        read.one("pipeline", "received_bytes"),
    ),
    counter(
        "frames_rejected_total",
        "Messages refused, by reason.",
        ("source", "reason"),
        read.each("frames", "rejected", known=get_args(RejectReason), first="source"),
    ),
    counter(
        "frames_missing_total",
        "Frame numbers that never came, of runs that are over.",
        (),
        read.one("frames", "missing"),
    ),
    counter(
        "frames_late_total",
        "Frames taken in after one of a higher number.",
        (),
        read.one("frames", "late"),
    ),
    counter(
        "frames_duplicate_total",
        "Frames whose number had come already.",
        (),
        read.one("frames", "duplicate"),
    ),
    counter(
        "frames_foreign_total",
        "Frames of another run than the one going on.",
        (),
        read.one("frames", "foreign"),
    ),
    counter(
        "frames_after_end_total",
        "Foreign frames that came after the end of their run.",
        (),
        read.one("frames", "after_end"),
    ),
    gauge("alarm_active", "1 while this is wrong with the stream.", ("alarm",), read.alarms),
    counter(
        "alarms_raised_total",
        "How often something was wrong with the stream.",
        ("alarm",),
        read.each("alarms_raised", known=ALARMS),
    ),
    gauge("source_connected", "1 unless the source failed.", (), read.one("source", "up")),
    gauge(
        "last_frame_age_seconds",
        "Time since the newest frame.",
        (),
        read.one("pipeline", "last_frame_age_s"),
    ),
    # the accounts
    counter(
        "stage_frames_in_total",
        "Frames that came into a stage or output.",
        ("stage",),
        read.stages("received"),
    ),
    counter(
        "stage_frames_out_total",
        "Frames that left a stage or output as they should.",
        ("stage",),
        read.stages("sent"),
    ),
    counter(
        "stage_frames_dropped_total",
        "Frames given up by a stage or output.",
        ("stage", "reason"),
        read.stage_drops,
    ),
    gauge(
        "stage_frames_in_flight",
        "Frames taken in and not yet accounted for.",
        ("stage",),
        read.stages("in_flight"),
    ),
    gauge("accounting_balanced", "1 while every account adds up.", (), read.one("balanced")),
    # the rings
    counter("ring_frames_total", "Frames written to a ring.", ("ring",), read.rings("frames")),
    gauge("ring_capacity_bytes", "Size of a ring.", ("ring",), read.rings("capacity_bytes")),
    counter(
        "ring_reader_frames_read_total",
        "Frames a reader took from a ring.",
        ("ring", "reader"),
        read.readers("read"),
    ),
    counter(
        "ring_reader_frames_lost_total",
        "Frames overwritten before a reader came.",
        ("ring", "reader"),
        read.readers("lost"),
    ),
    counter(
        "ring_reader_frames_skipped_total",
        "Frames a reader passed over.",
        ("ring", "reader"),
        read.readers("skipped"),
    ),
    gauge(
        "ring_reader_frames_waiting",
        "Frames a reader has not come to yet.",
        ("ring", "reader"),
        read.readers("in_flight"),
    ),
    gauge("queue_frames", "Items waiting in a queue.", ("queue",), read.each("queues", "frames")),
    gauge("queue_capacity_frames", "Room in a queue.", ("queue",), read.each("queues", "capacity")),
    # the model
    gauge(
        "received_frames_per_second", "Rate of arrival.", (), read.one("pipeline", "received_hz")
    ),
    gauge(
        "clean_frames_per_second", "Rate of cleaned frames.", (), read.one("pipeline", "clean_hz")
    ),
    gauge(
        "fallback_info",
        "The classical denoiser that runs where no network does.",
        ("denoiser",),
        read.info(("model", "fallback")),
    ),
    gauge(
        "psnr_estimated_decibels",
        "Estimated PSNR of clean frames.",
        (),
        read.one("pipeline", "psnr_estimated_db"),
    ),
    gauge(
        "psnr_error_decibels",
        "Standard error of the estimated PSNR.",
        (),
        read.one("pipeline", "psnr_error_db"),
    ),
    gauge(
        "psnr_raw_decibels",
        "Estimated PSNR of raw frames.",
        (),
        read.one("pipeline", "psnr_raw_db"),
    ),
    gauge(
        "psnr_trusted",
        "1 while the noise allows the estimate.",
        (),
        read.one("pipeline", "trusted"),
    ),
    gauge(
        "noise_correlation",
        "Correlation of the raw noise: with its neighbour, along a line, with the next frame; "
        "fixed is the power of a pattern that stays, over that of the noise.",
        ("axis",),
        read.each("noise", "correlation"),
    ),
    gauge(
        "degradation_state",
        "1 for the last of what is being given up now; what comes before it is given up, too.",
        ("state",),
        read.one_hot(STATES, "degradation"),
    ),
    gauge(
        "degradation_since_timestamp_seconds",
        "Unix time since which something is given up; absent while it is not.",
        ("what",),
        read.each("shedding", "since_unix_s"),
    ),
    counter(
        "degradation_episodes_total",
        "How often something was given up.",
        ("what",),
        read.each("shedding", "episodes", known=tuple(LIMITS)),
    ),
    counter(
        "frames_without_analyses_total",
        "Clean frames that were not analysed, for lack of time.",
        (),
        read.one("shedding", "frames", "analyses"),
    ),
    gauge(
        "model_generation",
        "Version of the promoted model in use; 0 is classical.",
        (),
        read.one("model", "version"),
    ),
    gauge("model_age_seconds", "Time since the model was changed.", (), read.one("model", "age_s")),
    gauge(
        "model_info",
        "The denoiser in use.",
        ("denoiser", "backend"),
        read.info(("pipeline", "denoiser"), ("pipeline", "engine")),
    ),
    counter(
        "model_swaps_total",
        "Changes of the model, and refusals.",
        ("result",),
        read.each("model", "swaps", known=SWAP_RESULTS),
    ),
    counter(
        "gate_decisions_total", "Decisions of the gate.", ("action",), read.each("model", "actions")
    ),
    # the trainer
    gauge("trainer_up", "1 while the trainer is ready.", (), read.one("trainer", "up")),
    counter(
        "trainer_steps_total", "Steps of training.", (), read.one("trainer", "progress", "steps")
    ),
    gauge(
        "trainer_steps_per_second",
        "Speed of training.",
        (),
        read.one("trainer", "progress", "steps_per_s"),
    ),
    gauge("trainer_loss", "Newest training loss.", (), read.one("trainer", "progress", "loss")),
    gauge(
        "trainer_validation_loss",
        "Newest loss on guard data.",
        (),
        read.one("trainer", "progress", "validation_loss"),
    ),
    counter(
        "trainer_restarts_total", "Restarts of the trainer.", ("reason",), read.trainer_restarts
    ),
    counter(
        "trainer_updates_rejected_total",
        "Candidates the gate refused.",
        (),
        read.one("model", "actions", "reject"),
    ),
    # views: outputs in a process of their own that serve clients
    gauge("view_up", "1 while the view serves.", ("view",), read.views_up),
    counter(
        "view_frames_total", "Frames, raw and clean, a view took.", ("view",), read.views_given
    ),
    counter(
        "view_frames_dropped_total",
        "Frames a view gave up to keep up with the stream.",
        ("view", "reason"),
        read.view_drops,
    ),
    counter(
        "view_refused_total",
        "Messages a view was sent and refused.",
        ("view", "reason"),
        read.view_refusals,
    ),
    # the outputs in processes of their own
    gauge("recorder_up", "1 while the output's process is ready.", ("output",), read.outputs("up")),
    gauge(
        "recorder_state",
        "1 for the state the output is in.",
        ("output", "state"),
        read.output_states,
    ),
    counter(
        "recorder_frames_written_total",
        "Raw frames that survive a crash.",
        ("output",),
        read.outputs("raw_written", total=True),
    ),
    counter(
        "recorder_clean_frames_written_total",
        "Clean frames that survive a crash.",
        ("output",),
        read.outputs("clean_written", total=True),
    ),
    counter(
        "recorder_frames_synced_total",
        "Raw frames that survive a power loss.",
        ("output",),
        read.outputs("synced", total=True),
    ),
    counter(
        "recorder_written_bytes_total",
        "Bytes written.",
        ("output",),
        read.outputs("bytes", total=True),
    ),
    gauge(
        "recorder_unflushed_frames",
        "Frames a crash would lose.",
        ("output",),
        read.outputs("status", "unflushed"),
    ),
    gauge(
        "recorder_free_bytes",
        "Free space where the output writes.",
        ("output",),
        read.outputs("status", "free_bytes"),
    ),
    counter(
        "recorder_frames_dropped_total",
        "Frames the output gave up.",
        ("output", "reason"),
        read.output_drops,
    ),
    counter(
        "published_frames_total",
        "Clean frames handed to an output.",
        ("output",),
        read.published,
    ),
    counter(
        "output_dropped_total",
        "Clean frames an output did not take.",
        ("output", "reason"),
        read.not_published,
    ),
    gauge(
        "output_subscribers",
        "Clients that have subscribed to an output, at its last frame.",
        ("output",),
        read.connections("subscribers"),
    ),
    counter(
        "output_clients_refused_total",
        "Clients whose CURVE key an output does not know, since it was opened.",
        ("output",),
        read.connections("refused"),
    ),
    # the service
    gauge("child_up", "1 while a child process is ready.", ("child",), read.children("up")),
    counter(
        "child_restarts_total", "Restarts of a child process.", ("child", "reason"), read.restarts
    ),
    counter(
        "child_garbled_lines_total",
        "Lines from a child that were no event.",
        ("child",),
        read.children("garbled"),
    ),
    counter("auth_failures_total", "Requests refused.", ("endpoint", "reason"), read.failures),
    counter(
        "config_reloads_total",
        "Reloads of the configuration.",
        ("result",),
        read.each("config", "reloads", known=RELOAD_RESULTS),
    ),
    gauge(
        "config_last_reload_successful",
        "1 unless the last reload failed.",
        (),
        read.one("config", "last_reload_successful"),
    ),
    gauge(
        "config_last_reload_success_timestamp_seconds",
        "Unix time of the last good load.",
        (),
        read.one("config", "last_reload_success_unix_s"),
    ),
    gauge(
        "heartbeat_age_seconds",
        "Time since a component last showed that it lives.",
        ("component",),
        read.each("heartbeats"),
    ),
    gauge(
        "watchdog_last_ping_timestamp_seconds",
        "Unix time of the last watchdog ping.",
        (),
        read.one("watchdog_last_ping_unix_s"),
    ),
    gauge("up_time_seconds", "Time since the daemon started.", (), read.one("uptime_s")),
    gauge(
        "build_info",
        "Version and configuration of the daemon.",
        ("version", "config_sha256"),
        read.info(("version",), ("config", "sha256")),
    ),
)
