"""`handful doctor`: a healthy machine, and what it says of a sick one."""

from __future__ import annotations

import os

import torch

from handful.cli import doctor


def test_it_looks_at_everything_and_trains(command):
    outcome = command("doctor", "--json")
    assert outcome.code == 0, outcome.out
    findings = {finding["name"]: finding for finding in outcome.json}
    assert {"python", "torch", "device", "threads", "load", "cache", "model", "task", "tiny fit"} <= set(findings)
    assert "saved, read back, same scores" in findings["tiny fit"]["found"]
    assert findings["torch"]["found"] == torch.__version__


def test_too_many_threads_and_a_busy_machine(monkeypatch):
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 0, 0))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    threads, load = doctor.threads()
    assert (threads.state, load.state) == ("note", "note")
    assert threads.found == "8 of torch on only 2 core(s); OMP_NUM_THREADS is 8"
    assert "set OMP_NUM_THREADS=2" in threads.advice
    assert "3.0 × as long" in load.advice


def test_a_cache_that_cannot_be_written_is_wrong_and_fails(command, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HANDFUL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(doctor, "tiny_fit", lambda device: [])
    outcome = command("doctor")
    assert outcome.code == 1
    assert "set HANDFUL_CACHE to a folder" in outcome.out
    assert "error: not as it should be: cache" in outcome.err
