// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package backend

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/oidcexchange/vault-plugin-secrets-oidcexchange/backend/target"
)

// Limits of one reconcile request. The answer says what was beyond them; the next request continues there.
const (
	reconcileListing = 30 * time.Second // for listing keys at the target
	reconcileFates   = 15 * time.Second // for asking about the keys of static roles; those without an answer by then are unclear
	reconcileEnding  = 20 * time.Second // after this time no further revocation starts
	reconcileKeys    = 500              // keys that are shown, and revoked
	reconcilePlaces  = 100              // places that are searched
	reconcileEntries = 10_000           // ledger entries that are read to find places
)

// reconciling searches a target for lost keys: keys with this mount's names that the ledger lacks. There are some only after
// a restore from an older snapshot. It first finds the places to search, then lists the keys there, then reads the ledger. The
// order matters: a key is in the ledger before it is at the target, so a key that is issued meanwhile does not seem lost.
type reconciling struct {
	*engine
	s        logical.Storage
	target   *openTarget
	instance string

	places []*place
	open   []string        // roles that let their callers choose the place
	more   bool            // there may be further places, beyond the limits
	lost   []target.Handle // sorted by name
	strays []target.Handle // keys with a static role's name that no static role has; sorted by name
}

// place is a part of a target in which keys may be (an owner, a project …), and what was found there.
type place struct {
	params map[string]any
	keys   []target.Handle // with this mount's names, whether or not the ledger has them
	whole  bool            // the place was listed completely
	err    error           // why it was not
}

// find searches for lost keys and strays, and changes nothing. given is the one place to search; nil = all known places.
func (r *reconciling) find(ctx context.Context, given map[string]any) error {
	if err := r.choosePlaces(ctx, given); err != nil {
		return err
	}
	listing, cancel := context.WithTimeout(ctx, reconcileListing)
	defer cancel()
	for _, p := range r.places {
		all, whole, err := r.target.List(listing, "oidc", p.params)
		p.whole, p.err = whole && err == nil, err
		for _, h := range all {
			if r.mine(leasedName, h.Name) || r.mine(staticName, h.Name) {
				p.keys = append(p.keys, h)
			}
		}
	}
	return r.compare(ctx)
}

var nameEnd = regexp.MustCompile(`\A[a-z2-7]{26}\z`)

// mine reports whether this mount has made a name. kind is the name's prefix: leasedName or staticName.
func (r *reconciling) mine(kind, name string) bool {
	end, begins := strings.CutPrefix(name, kind+r.instance+"-")
	return begins && r.instance != "" && nameEnd.MatchString(end) // a mount without an instance has never requested a key
}

// choosePlaces sets the places to search: those that roles name, and those of keys in the ledger.
func (r *reconciling) choosePlaces(ctx context.Context, given map[string]any) error {
	placed := r.target.Placed()
	if given != nil || len(placed) == 0 {
		p, ok := r.target.Place(given)
		for name := range given {
			ok = ok && slices.Contains(placed, name)
		}
		if !ok {
			return badField("parameters", "want the parameters that name a place, and no others: %s", strings.Join(placed, ", "))
		}
		r.places = []*place{{params: p}}
		return nil
	}
	if err := r.placesOfRoles(ctx); err != nil {
		return err
	}
	read := 0
	bad, err := r.ledger.scan(ctx, r.s, &filter{Target: r.target.name}, "", func(e *entry, _ verdict) bool {
		if p, ok := r.target.Place(e.Handle.Params); ok {
			r.look(p)
		}
		read++
		r.more = r.more || read == reconcileEntries
		return read < reconcileEntries
	})
	return cmp.Or(err, bad.err())
}

// placesOfRoles adds the places that roles name, and notes the roles whose callers may choose the place.
func (r *reconciling) placesOfRoles(ctx context.Context) (err error) {
	chosen := func(name string) bool { return slices.Contains(r.target.Placed(), name) }
	r.open, err = users(ctx, r.s, r.roleNoun.table, "role", func(role *roleRecord) bool {
		if role.Target != r.target.name {
			return false
		}
		p, ok := r.target.Place(role.Parameters)
		if ok {
			r.look(p)
		}
		return !ok || slices.ContainsFunc(role.AllowedParameters, chosen) || slices.ContainsFunc(slices.Collect(maps.Keys(role.ParametersFrom)), chosen)
	})
	if err != nil {
		return err
	}
	_, err = users(ctx, r.s, r.staticNoun.table, "static role", func(role *staticRecord) bool {
		if p, ok := r.target.Place(role.Parameters); ok && role.Target == r.target.name {
			r.look(p)
		}
		return false
	})
	return err
}

// look adds a place to search, unless it is already there or there are too many.
func (r *reconciling) look(params map[string]any) {
	switch {
	case slices.ContainsFunc(r.places, func(p *place) bool { return sameJSON(p.params, params) }):
	case len(r.places) == reconcilePlaces:
		r.more = true
	default:
		r.places = append(r.places, &place{params: params})
	}
}

// compare sets lost and strays: the found keys that neither the ledger nor a static role has. It reads storage, not the tally,
// which may be incomplete. Exchanges under way are no problem: their intents are in open/ before a key exists.
func (r *reconciling) compare(ctx context.Context) error {
	leased, static := map[string][]target.Handle{}, map[string][]target.Handle{} // by name
	for _, p := range r.places {
		for _, h := range p.keys {
			of := static
			if r.mine(leasedName, h.Name) {
				of = leased
			}
			if !slices.ContainsFunc(of[h.Name], func(k target.Handle) bool { return k.Accessor == h.Accessor }) { // two places may name the same part of the target
				of[h.Name] = append(of[h.Name], h)
			}
		}
	}
	forget := func(name string) { delete(leased, name); delete(static, name) }
	if err := r.staticNames(ctx, forget); err != nil {
		return err
	}
	bad, err := r.ledger.eachOpen(ctx, r.s, func(e *entry) (bool, error) {
		forget(e.Name)
		forget(e.Handle.Name)
		return true, ctx.Err()
	})
	if err = cmp.Or(err, bad.err()); err != nil {
		return err
	}
	bad, err = r.ledger.each(ctx, r.s, "", func(id string, _ bool) (bool, error) {
		_, rand, _ := splitID(id)
		forget(leasedName + r.instance + "-" + rand)
		return true, ctx.Err()
	})
	if err = cmp.Or(err, bad.err()); err != nil {
		return err
	}
	r.lost, r.strays = sorted(leased), sorted(static)
	return nil
}

// sorted returns all handles, sorted by name.
func sorted(byName map[string][]target.Handle) []target.Handle {
	var all []target.Handle
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		all = append(all, byName[name]...)
	}
	return all
}

// staticNames calls visit for the name of every key that a static role has or is about to request.
func (r *reconciling) staticNames(ctx context.Context, visit func(name string)) error {
	_, err := users(ctx, r.s, staticTable, "static role", func(st *staticState) bool {
		visit(st.Name)
		for _, k := range []*staticKey{st.Current, st.Next} {
			if k != nil {
				visit(k.Handle.Name)
			}
		}
		for _, k := range st.Old {
			visit(k.Handle.Name)
		}
		return false
	})
	return err
}

// staticFates returns, for each static role of the target, whether the target knows the role's present key.
func (r *reconciling) staticFates(ctx context.Context) (map[string]any, error) {
	asking, cancel := context.WithTimeout(ctx, reconcileFates)
	defer cancel()
	fates := map[string]any{}
	names, err := r.staticNoun.table.list(ctx, r.s)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		role, err := r.openStatic(ctx, r.s, name)
		if err != nil {
			return nil, err
		}
		if role != nil && role.record.Target == r.target.name && role.state != nil && role.state.Current != nil {
			fates[name] = r.fate(asking, role.state.Current)
		}
	}
	return fates, nil
}

// fate returns "known", "unknown" (to the target, because the key was rotated after the snapshot) or "unclear".
func (r *reconciling) fate(ctx context.Context, k *staticKey) string {
	if r.target.Caps().Identify {
		_, err := r.target.Identify(ctx, k.Secret, k.Handle.Params)
		switch {
		case err == nil:
			return "known"
		case errors.Is(err, target.ErrDenied):
			return "unknown"
		}
		return "unclear"
	}
	at, _ := r.target.Place(k.Handle.Params)
	for _, p := range r.places {
		switch {
		case !r.mine(staticName, k.Handle.Name) || !sameJSON(p.params, at):
		case slices.ContainsFunc(p.keys, func(h target.Handle) bool { return h.Name == k.Handle.Name && h.Accessor == k.Accessor }):
			return "known"
		case p.whole:
			return "unknown"
		}
	}
	return "unclear"
}

// replayWindow returns for how long after a restore single-use tokens may be valid that were already used after the snapshot.
func (r *reconciling) replayWindow(ctx context.Context) (longest time.Duration, err error) {
	_, err = users(ctx, r.s, r.issuerNoun.table, "issuer", func(i *issuerRecord) bool {
		if i.Enabled && i.SingleUse && i.Type != issuerLogin {
			life := i.MaxTokenLifetime
			if i.MaxAge > 0 {
				life = min(life, i.MaxAge)
			}
			longest = max(longest, (life + i.ClockSkewLeeway).duration())
		}
		return false
	})
	return longest, err
}

// shared reports whether Vault replicates this mount to other clusters. Each has its own ledger but the same instance, so that
// their keys cannot be distinguished from lost ones.
func (b *engine) shared() bool {
	return !b.System().LocalMount() && b.System().ReplicationState().HasState(consts.ReplicationPerformancePrimary|consts.ReplicationPerformanceSecondary)
}

// ended is the outcome for one lost key.
type ended struct {
	tried bool
	err   error // if tried: nil = revoked
}

// end revokes lost keys, as many at once as the target takes. It starts no revocation after reconcileEnding.
func (r *reconciling) end(ctx context.Context, keys []target.Handle) []ended {
	outcomes := make([]ended, len(keys))
	beginning, cancel := context.WithTimeout(ctx, reconcileEnding)
	defer cancel()
	next := make(chan int)
	var work sync.WaitGroup
	for range min(r.target.Width(revokeTimeout/2), len(keys)) {
		work.Go(func() {
			for i := range next {
				outcomes[i].tried, outcomes[i].err = true, r.endOne(ctx, keys[i])
			}
		})
	}
	for i := 0; i < len(keys) && beginning.Err() == nil; i++ {
		select {
		case next <- i:
		case <-beginning.Done():
		}
	}
	close(next)
	work.Wait()
	return outcomes
}

// endOne revokes a lost key. It first records the key in the ledger as a debt, so that the sweeper retries if this fails.
func (r *reconciling) endOne(ctx context.Context, h target.Handle) (err error) {
	defer r.recovered(&logical.Request{Path: "reconcile/" + r.target.name}, nil, &err)
	now := r.now().UTC()
	e := &entry{
		ID: newID(now), Name: h.Name, State: stateIssued, Role: reconciledPrefix + r.target.name, Target: r.target.name, Accessor: h.Accessor,
		Revocable: true, NotAfter: now, Handle: h, Claims: map[string]any{},
	}
	if err := r.ledger.file(ctx, r.s, e); err != nil {
		return err
	}
	e.DebtSince, e.NextTry = now, now.Add(time.Minute)
	if err := r.ledger.openDebt(ctx, r.s, e); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	if err := r.target.Revoke(call, h); err != nil {
		r.Logger().Warn("revoking a lost key; the sweeper will retry", "id", e.ID, "target", e.Target, "error", err)
		r.sendKeyEvent(ctx, eventOwed, e)
		return err
	}
	writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	return r.recordRevoked(writing, r.s, e)
}

const reconciledPrefix = "reconcile/" // followed by the target's name, stands for the role in a lost key's entry
