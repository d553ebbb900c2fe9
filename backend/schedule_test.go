// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"testing"
	"time"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	if text == "" {
		return time.Time{}
	}
	parsed, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// When a rotation is due depends on what is stored and the time, and on nothing else: not on the zone of these times,
// whose clocks change.
func TestDue(t *testing.T) {
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	saturdays := schedule{RotationSchedule: "30 2 * * SAT"}
	windowed := schedule{RotationSchedule: "30 2 * * SAT", RotationWindow: 3600}
	for name, c := range map[string]struct {
		schedule                schedule
		last, expiry, now, want string
	}{
		"period":                          {schedule{RotationPeriod: 3600}, "2031-03-01T10:00:00Z", "", "2031-03-01T10:00:00Z", "2031-03-01T11:00:00Z"},
		"period, long past":               {schedule{RotationPeriod: 3600}, "2031-03-01T10:00:00Z", "", "2031-04-01T10:00:00Z", "2031-03-01T11:00:00Z"},
		"nothing":                         {schedule{}, "2031-03-01T10:00:00Z", "2031-03-01T11:00:00Z", "2031-03-01T10:00:00Z", ""},
		"schedule":                        {saturdays, "2031-03-01T02:30:00Z", "", "2031-03-01T02:30:01Z", "2031-03-08T02:30:00Z"},
		"schedule over a change of clock": {saturdays, "2031-03-08T02:30:00Z", "", "2031-03-10T02:30:00Z", "2031-03-15T02:30:00Z"},
		"schedule, missed":                {saturdays, "2031-03-01T02:30:00Z", "", "2031-03-09T12:00:00Z", "2031-03-08T02:30:00Z"},
		"window, open":                    {windowed, "2031-03-01T02:30:00Z", "", "2031-03-08T03:29:00Z", "2031-03-08T02:30:00Z"},
		"window, missed":                  {windowed, "2031-03-01T02:30:00Z", "", "2031-03-08T03:31:00Z", "2031-03-15T02:30:00Z"},
		"window, missed twice":            {windowed, "2031-03-01T02:30:00Z", "", "2031-03-17T00:00:00Z", "2031-03-22T02:30:00Z"},
		"window, to come":                 {windowed, "2031-03-01T02:31:00Z", "", "2031-03-05T00:00:00Z", "2031-03-08T02:30:00Z"},
		"ends long after":                 {saturdays, "2031-03-01T02:30:00Z", "2031-03-20T00:00:00Z", "2031-03-02T00:00:00Z", "2031-03-08T02:30:00Z"},
		"ends before":                     {saturdays, "2031-03-02T00:00:00Z", "2031-03-06T00:00:00Z", "2031-03-02T00:00:00Z", "2031-03-05T00:00:00Z"},
		"ends within the day":             {saturdays, "2031-03-02T00:00:00Z", "2031-03-02T08:00:00Z", "2031-03-02T00:00:00Z", "2031-03-02T06:00:00Z"},
		"missed, and would end":           {windowed, "2031-03-01T02:30:00Z", "2031-03-12T02:30:00Z", "2031-03-08T03:31:00Z", "2031-03-11T02:30:00Z"},
		"never rotated":                   {saturdays, "", "", "2031-03-02T00:00:00Z", "0001-01-06T02:30:00Z"},
	} {
		if got := c.schedule.due(at(t, c.last).In(zone), at(t, c.expiry), at(t, c.now).In(zone)); !got.Equal(at(t, c.want)) {
			t.Errorf("%s: due %v; want %v", name, got, c.want)
		}
	}
}

// A secret is given an end after its next rotation, and time for one that fails; never for ever.
func TestEndOfASecret(t *testing.T) {
	now := at(t, "2031-03-01T00:00:00Z")
	for name, c := range map[string]struct {
		schedule schedule
		want     string
	}{
		"hourly":     {schedule{RotationPeriod: 3600}, "2031-03-02T01:00:00Z"},
		"every day":  {schedule{RotationPeriod: 24 * 3600}, "2031-03-03T00:00:00Z"},
		"a month":    {schedule{RotationPeriod: 30 * 24 * 3600}, "2031-04-07T00:00:00Z"},
		"saturdays":  {schedule{RotationSchedule: "30 2 * * SAT", RotationWindow: 7200}, "2031-03-02T04:30:00Z"}, // 1 March is one
		"by nothing": {schedule{}, "2032-02-28T00:00:00Z"},
	} {
		if got := c.schedule.end(now); !got.Equal(at(t, c.want)) {
			t.Errorf("%s: end %v; want %v", name, got, c.want)
		}
	}
}

func TestSchedulesThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		schedule schedule
		field    string
	}{
		"none":               {schedule{}, ""},
		"period":             {schedule{RotationPeriod: 60}, ""},
		"short period":       {schedule{RotationPeriod: 59}, "rotation_period"},
		"schedule":           {schedule{RotationSchedule: "*/5 1-3 1,15 * MON-FRI", RotationWindow: 3600}, ""},
		"both":               {schedule{RotationPeriod: 3600, RotationSchedule: "* * * * *"}, "rotation_schedule"},
		"six fields":         {schedule{RotationSchedule: "0 * * * * *"}, "rotation_schedule"},
		"words":              {schedule{RotationSchedule: "@daily"}, "rotation_schedule"},
		"a zone":             {schedule{RotationSchedule: "TZ=Europe/Berlin 0 3 * * *"}, "rotation_schedule"},
		"a zone, cron's way": {schedule{RotationSchedule: "CRON_TZ=Europe/Berlin 0 3 * * *"}, "rotation_schedule"},
		"no such day":        {schedule{RotationSchedule: "0 3 30 2 *"}, "rotation_schedule"},
		"window of a period": {schedule{RotationPeriod: 7200, RotationWindow: 3600}, "rotation_window"},
		"short window":       {schedule{RotationSchedule: "0 3 * * *", RotationWindow: 3599}, "rotation_window"},
	} {
		got := ""
		if err := c.schedule.check(); err != nil {
			got = err.Error()
		}
		if want := "bad_request: " + c.field + ": "; (c.field == "") != (got == "") || c.field != "" && len(got) > len(want) && got[:len(want)] != want {
			t.Errorf("%s: got %q; want one of field %q", name, got, c.field)
		}
	}
}
