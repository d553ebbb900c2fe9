// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/robfig/cron/v3"
)

// schedule says when the engine rotates a secret. Its fields have the names and meanings that Vault's own engines give them,
// except that a rotation_schedule is always in UTC.
type schedule struct {
	RotationPeriod   seconds `json:"rotation_period"`
	RotationSchedule string  `json:"rotation_schedule"`
	RotationWindow   seconds `json:"rotation_window"`
}

const (
	minPeriod   = time.Minute // Vault calls the periodic function about once a minute
	minWindow   = time.Hour
	minSpare    = 24 * time.Hour       // a secret lives at least this much longer at its target than until its next rotation
	maxSpare    = 7 * 24 * time.Hour   // and at most this much
	unscheduled = 364 * 24 * time.Hour // life of a secret that only operators rotate; many APIs allow at most a year
)

// scheduled adds the fields of a schedule to a record's.
func scheduled(what string, fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	fields["rotation_period"] = &framework.FieldSchema{Type: framework.TypeDurationSecond, Description: "Time between two rotations of " + what + ", at least 1m; or rotation_schedule."}
	fields["rotation_schedule"] = &framework.FieldSchema{Type: framework.TypeString, Description: "When to rotate " + what + ", as a cron expression of five fields in UTC, such as 0 3 * * SAT."}
	fields["rotation_window"] = &framework.FieldSchema{Type: framework.TypeDurationSecond, Description: "With rotation_schedule: for how long after a time of the schedule a rotation may begin, at least 1h; one that was missed waits for the next time. Default: it is made up for."}
	return fields
}

// set reports whether the secret is rotated automatically.
func (s schedule) set() bool { return s.RotationPeriod > 0 || s.RotationSchedule != "" }

func (s schedule) check() error {
	switch {
	case s.RotationPeriod > 0 && s.RotationSchedule != "":
		return badField("rotation_schedule", "excludes rotation_period; give one of them, and reset the other with null")
	case s.RotationPeriod > 0 && s.RotationPeriod.duration() < minPeriod:
		return badField("rotation_period", "want at least %s", minPeriod)
	case s.RotationWindow > 0 && s.RotationSchedule == "":
		return badField("rotation_window", "goes with rotation_schedule only")
	case s.RotationWindow > 0 && s.RotationWindow.duration() < minWindow:
		return badField("rotation_window", "want at least %s", minWindow)
	case s.RotationSchedule == "":
		return nil
	}
	if times, err := s.times(); err != nil || times.Next(time.Unix(0, 0)).IsZero() {
		return badField("rotation_schedule", "want a cron expression of five fields (minute, hour, day of month, month, day of week) that matches some time, in UTC and without a time zone")
	}
	return nil
}

// times parses rotation_schedule as Vault's engines do. The result computes in the time zone of the time passed to Next.
func (s schedule) times() (cron.Schedule, error) {
	text := s.RotationSchedule
	if strings.Contains(text, "=") { // TZ=… would set another zone; the empty text is refused
		text = ""
	}
	return cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(text)
}

// due returns when to rotate a secret next; zero = never. The time may be in the past. last is when it was last rotated,
// expiry is its own end (zero = never). A scheduled time whose window is over is skipped, unless the secret would expire
// before the next one. If last lies in the future, because a clock ran ahead, the secret is due now.
func (s schedule) due(last, expiry, now time.Time) time.Time {
	if s.set() && last.Sub(now) > maxBackoff {
		return now
	}
	next := s.after(last)
	if window := s.RotationWindow.duration(); window > 0 && now.After(next.Add(window)) {
		next = s.after(now.Add(-window))
	}
	if expiry.IsZero() || next.IsZero() {
		return next
	}
	latest := expiry.Add(-min(minSpare, expiry.Sub(last)/4))
	if latest.Before(next) {
		return latest
	}
	return next
}

// after returns the first scheduled time after t; zero without a schedule.
func (s schedule) after(t time.Time) time.Time {
	if s.RotationPeriod > 0 {
		return t.Add(s.RotationPeriod.duration()).UTC()
	}
	times, err := s.times()
	if s.RotationSchedule == "" || err != nil { // an error is impossible: check has parsed it before
		return time.Time{}
	}
	return times.Next(t.UTC())
}

// end returns the expiry to request for a secret made now: after the next rotation, with some time to spare in case that
// fails.
func (s schedule) end(now time.Time) time.Time {
	if !s.set() {
		return now.Add(unscheduled)
	}
	next := s.after(now)
	spare := min(max(next.Sub(now), minSpare), maxSpare)
	return next.Add(s.RotationWindow.duration() + spare).UTC()
}
