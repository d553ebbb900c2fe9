// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// The ledger has an entry for every key that was requested from a target and is not known to have ended. Its invariant: a
// key that is valid at a target is in the ledger.
//
//	open/<rand>          unsettled: intents of exchanges, and debts (keys that must be revoked, which has failed so far)
//	keys/<hour>/<rand>   filed: keys that were issued, by the hour of the latest time at which the key can end, plus
//	                     clockAhead for a key that only its own expiry ends
//
// A key's id is "<hour>-<rand>". It never changes, because renewals do not move that latest end. The sweeper reads open/ and
// the hours that have passed, so its work does not grow with the number of valid keys.
const (
	openEntries = "ledger/open/"
	plainKeys   = "ledger/keys/"
	sealedKeys  = "sealed/keys/" // entries that hold a key, because its target demands it for revoking
	hourLayout  = "2006010215"
)

// Everything that the engine creates at a target has a name there: one of these prefixes, the mount's instance, a hyphen and
// random letters. The prefixes differ, so that a search for lost leased keys never finds the key of a static role or a
// credential that is in use.
const (
	leasedName     = "oidcx-"
	staticName     = "oidcs-"
	credentialName = "oidcc-"
)

// The states of an entry.
const (
	statePending = "pending" // requested; the outcome is not recorded yet
	stateIssued  = "issued"  // a lease holds it
	stateDebt    = "debt"    // must be revoked, which has failed so far
	stateExposed = "exposed" // may be valid, and its target can neither find nor revoke it
)

// entry is one key in the ledger. It does not contain the key itself, except in Handle.Secret where the target requires the
// key for revoking it.
type entry struct {
	ID            string         `json:"id"`
	Name          string         `json:"name"` // of the key at its target
	State         string         `json:"state"`
	Role          string         `json:"role"`
	LeasePath     string         `json:"lease_path,omitzero"`
	Target        string         `json:"target"`
	Issuer        string         `json:"issuer,omitzero"`
	Subject       string         `json:"subject,omitzero"`
	Trust         string         `json:"trust,omitzero"`
	Revision      int            `json:"revision,omitzero"`
	Entity        string         `json:"entity,omitzero"`
	DisplayName   string         `json:"display_name,omitzero"`
	RemoteAddress string         `json:"remote_address,omitzero"`
	Claims        map[string]any `json:"claims,omitzero"`         // of the subject token, as far as they were recorded; nil for a login
	ClaimsWhole   bool           `json:"claims_whole,omitzero"`   // it had no others
	ClaimsAbsent  []string       `json:"claims_absent,omitzero"`  // claims that were to be recorded and that it did not have
	ClaimsPartial bool           `json:"claims_partial,omitzero"` // one was left out for its size
	JTI           string         `json:"jti,omitzero"`
	Accessor      string         `json:"accessor,omitzero"`
	Revocable     bool           `json:"revocable,omitzero"`
	IssuedAt      time.Time      `json:"issued_at,omitzero"`
	NotAfter      time.Time      `json:"not_after,omitzero"`  // latest end that the key can have
	ExpiresAt     time.Time      `json:"expires_at,omitzero"` // the key's own expiry; zero = never
	RequestID     string         `json:"request_id,omitzero"`
	Handle        target.Handle  `json:"handle,omitzero"`
	DebtSince     time.Time      `json:"debt_since,omitzero"`
	NextTry       time.Time      `json:"next_try,omitzero"`
	Tries         int            `json:"tries,omitzero"`
}

func (e *entry) rand() string { _, r, _ := strings.Cut(e.ID, "-"); return r }

func (e *entry) holder() unique.Handle[holder] {
	return unique.Make(holder{role: e.Role, issuer: e.Issuer, subject: e.Subject})
}

// recorded reports whether the entry knows a claim's value, or that the claim was absent.
func (e *entry) recorded(claim string) bool {
	_, found := e.Claims[claim]
	return found || e.ClaimsWhole || slices.Contains(e.ClaimsAbsent, claim)
}

// sealed reports whether the entry contains the key itself, and so belongs under sealedKeys.
func (e *entry) sealed() bool { return e.Handle.Secret != "" }

// ledger stores entries, and keeps a tally of them in memory.
type ledger struct {
	tally
	changes [64]sync.Mutex // by a hash of rand: a change is a read and a write, and must not restore an entry removed in between
}

// change locks one key for a change. The caller unlocks the result.
func (l *ledger) change(rand string) *sync.Mutex {
	h := fnv.New32a()
	_, _ = h.Write([]byte(rand)) // a hash takes everything
	lock := &l.changes[h.Sum32()%uint32(len(l.changes))]
	lock.Lock()
	return lock
}

var openTable = table[entry]{prefix: openEntries}

// keyTable returns the table of the keys that are filed under one hour.
func keyTable(hour string, sealed bool) table[entry] {
	if sealed {
		return table[entry]{prefix: sealedKeys + hour + "/"}
	}
	return table[entry]{prefix: plainKeys + hour + "/"}
}

// lastHour is the last under which anything is filed: an id has four digits for the year, like JSON, and there are targets that
// say "never" by the end of the year 9999.
var lastHour = time.Date(9999, time.December, 31, 22, 0, 0, 0, time.UTC)

func hourOf(t time.Time) string {
	if t.After(lastHour) {
		t = lastHour
	}
	return t.UTC().Format(hourLayout)
}

// splitID returns the parts of an id; ok is false if it is not an id.
func splitID(id string) (hour, rand string, ok bool) {
	hour, rand, ok = strings.Cut(id, "-")
	if _, err := time.Parse(hourLayout, hour); err != nil || !names.MatchString(rand) {
		return "", "", false
	}
	return hour, rand, ok
}

// newID makes an id, with 130 random bits, for a key that is filed under the hour of until.
func newID(until time.Time) string {
	return hourOf(until) + "-" + strings.ToLower(rand.Text())
}

// clockAhead is by how much a node's clock may be ahead and still take no key for expired that is valid.
const clockAhead = time.Hour

// fileByExpiry files a key that only its own expiry ends: under the hour of that, plus clockAhead.
func (e *entry) fileByExpiry() {
	e.NotAfter = e.ExpiresAt
	e.ID = hourOf(e.NotAfter.Add(clockAhead)) + "-" + e.rand()
}

// expired reports whether a key that only its own expiry ends has ended, also if the clock is ahead.
func (e *entry) expired(now time.Time) bool { return !now.Before(e.NotAfter.Add(clockAhead)) }

// intend records that a key is about to be requested. It comes before anything is sent.
func (l *ledger) intend(ctx context.Context, s logical.Storage, e *entry) error {
	e.State = statePending
	l.put(e)
	return l.open(ctx, s, e)
}

// open writes a record to open/.
func (l *ledger) open(ctx context.Context, s logical.Storage, e *entry) error {
	l.setClosed(e.rand(), false) // before the write: a record that may exist must get removed later
	return openTable.put(ctx, s, e.rand(), e)
}

// file writes an entry under keys/.
func (l *ledger) file(ctx context.Context, s logical.Storage, e *entry) error {
	hour, rand, _ := splitID(e.ID)
	l.put(e) // before the write: an entry that may exist must count
	return keyTable(hour, e.sealed()).put(ctx, s, rand, e)
}

// void removes an intent that led to no key.
func (l *ledger) void(ctx context.Context, s logical.Storage, rand string) error {
	if err := l.settle(ctx, s, rand); err != nil {
		return err
	}
	l.remove(rand)
	return nil
}

// settle removes the record in open/ of a key that is filed.
func (l *ledger) settle(ctx context.Context, s logical.Storage, rand string) error {
	err := openTable.delete(ctx, s, rand)
	if err == nil {
		l.setClosed(rand, true)
	}
	return err
}

// openDebt records in open/ that a filed key must be revoked. The record has no handle, so it never contains the key.
func (l *ledger) openDebt(ctx context.Context, s logical.Storage, e *entry) error {
	debt := *e
	debt.State = stateDebt
	debt.Handle = target.Handle{}
	return l.open(ctx, s, &debt)
}

// update changes a filed entry. found is false if the entry is gone.
func (l *ledger) update(ctx context.Context, s logical.Storage, id string, change func(*entry)) (found bool, err error) {
	_, rand, _ := splitID(id)
	defer l.change(rand).Unlock()
	e, err := l.filed(ctx, s, id)
	if err != nil || e == nil {
		return false, err
	}
	change(e)
	return true, l.file(ctx, s, e)
}

// delete removes a key that is known to have ended.
func (l *ledger) delete(ctx context.Context, s logical.Storage, e *entry) error {
	hour, rand, ok := splitID(e.ID)
	if !ok {
		return storageError(fmt.Errorf("%q is not a ledger id", e.ID))
	}
	defer l.change(rand).Unlock()
	closed := l.isClosed(rand)
	if err := keyTable(hour, e.sealed()).delete(ctx, s, rand); err != nil {
		return err
	}
	l.remove(rand) // before settle: if that fails, the sweeper removes the open record, but may never see this key again
	if closed {
		return nil
	}
	return l.settle(ctx, s, rand)
}

// get returns the entry of an id, or nil. The state of a debt comes from its record in open/, everything else from the filed
// entry if there is one.
func (l *ledger) get(ctx context.Context, s logical.Storage, id string) (*entry, error) {
	_, rand, ok := splitID(id)
	if !ok {
		return nil, nil
	}
	var open *entry
	var err error
	if !l.isClosed(rand) {
		if open, err = openTable.get(ctx, s, rand); err != nil {
			return nil, err
		}
	}
	filed, err := l.filed(ctx, s, id)
	switch {
	case err != nil:
		return nil, err
	case filed == nil && open != nil && open.ID == id:
		return open, nil
	case filed != nil && open != nil && open.State == stateDebt:
		filed.State, filed.DebtSince, filed.NextTry, filed.Tries = stateDebt, open.DebtSince, open.NextTry, open.Tries
	}
	return filed, nil
}

// filed returns the filed entry of an id, or nil.
func (l *ledger) filed(ctx context.Context, s logical.Storage, id string) (*entry, error) {
	hour, rand, _ := splitID(id)
	for _, sealed := range []bool{false, true} {
		if e, err := keyTable(hour, sealed).get(ctx, s, rand); err != nil || e != nil {
			return e, err
		}
	}
	return nil, nil
}
