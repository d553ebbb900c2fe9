// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

package target

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"
)

// create makes a key for a user through the API.
func (d *connectDriver) create(ctx context.Context, r Request) (Key, error) {
	const op = "exchange"
	user, _ := r.Params["user"].(string)
	asked := map[string]any{"name": r.Name}
	if role, given := r.Params["user_role"]; given {
		asked["user_role"] = role
	}
	if !r.NotAfter.IsZero() {
		asked["expires_at"] = r.NotAfter
	}
	c := d.call(op, http.MethodPost, d.apiKey, "v1", "users", user, "keys")
	var err error
	if c.body, err = encodeJSON(asked); err != nil {
		return Key{}, unbuildable(op, "%v", err)
	}
	c.header.Set("Content-Type", "application/json")
	c.ok, c.denied, c.wantBody, c.hint = []int{200, 201}, []int{400, 401, 403, 404, 422}, true, keysHint
	answered, err := d.api.do(ctx, c)
	if err != nil {
		return Key{}, err
	}
	return createdKey(op, answered, r, d.api.now())
}

// keysHint says what to correct after a refused call of the API.
func keysHint(a answer) string {
	switch a.status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return "it does not take these parameters; user_role must not be above the role of the credential's user"
	case http.StatusUnauthorized:
		return "the credential is wrong or has expired"
	case http.StatusForbidden:
		return "Connect makes keys for the credential's own user alone; check the parameter user, and that user_role is not above the user's"
	case http.StatusNotFound:
		return "it has no such user; check the parameter user, and the path in the target's url"
	}
	return ""
}

// createdKey reads the key from an answer. From here on a key exists, so every fault is ErrProtocol. A server that does not
// support expiry of keys leaves expires_at out: such a key does not end by itself.
func createdKey(op string, a answer, r Request, now time.Time) (Key, error) {
	body := object(a.body)
	k := Key{Handle: Handle{Name: r.Name, Params: r.Params}}
	k.Secret, _ = body["key"].(string)
	k.Accessor = textOrNumber(body["id"])
	if k.Accessor == "" { // nobody could end it
		return Key{}, protocol(op, "the key has no id")
	}
	if ends := body["expires_at"]; ends != nil {
		text, _ := ends.(string)
		at, err := time.Parse(time.RFC3339, text)
		if err != nil || at.IsZero() {
			return Key{}, protocol(op, "expires_at is not a time")
		}
		k.Expiry = at.UTC()
	}
	if fault := k.check(now); fault != "" {
		return Key{}, protocol(op, "%s", fault)
	}
	k.Header, k.Handle.Accessor = "Key "+k.Secret, k.Accessor
	return k, nil
}

// textOrNumber returns an id, which JSON may have as a text or a number.
func textOrNumber(value any) string {
	switch value := value.(type) {
	case string:
		return value
	case json.Number:
		return string(value)
	}
	return ""
}

// delete ends a key. If the server does not find it, that proves little, because it also does not find keys of other users. So
// delete then looks for the key in the list of the user's keys, which nobody else may read.
func (d *connectDriver) delete(ctx context.Context, h Handle) error {
	const op = "revoke"
	user, _ := h.Params["user"].(string)
	if !validAccessor(h.Accessor) || user == "" {
		return unbuildable(op, "the key has no id or no user")
	}
	c := d.call(op, http.MethodDelete, d.apiKey, "v1", "users", user, "keys", h.Accessor)
	c.ok, c.gone, c.denied, c.urgent, c.hint = []int{200, 202, 204}, []int{404}, []int{400, 401, 403}, true, keysHint
	answered, err := d.api.do(ctx, c)
	if err != nil || answered.status != http.StatusNotFound {
		return err
	}
	keys, err := d.keysOf(ctx, op, user)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(keys, func(k connectKey) bool { return k.id == h.Accessor }) {
		return protocol(op, "the server lists the key that it does not find")
	}
	return nil
}

// find returns the user's keys that have the handle's name.
func (d *connectDriver) find(ctx context.Context, h Handle) ([]Handle, error) {
	const op = "find"
	user, _ := h.Params["user"].(string)
	if user == "" {
		return nil, unbuildable(op, "the key has no user")
	}
	keys, err := d.keysOf(ctx, op, user)
	if err != nil {
		return nil, err
	}
	var found []Handle
	for _, k := range keys {
		if k.name == h.Name {
			found = append(found, Handle{Name: h.Name, Accessor: k.id, Params: h.Params})
		}
	}
	return found, nil
}

// connectKey is a key as the API lists it.
type connectKey struct{ id, name string }

// list returns all keys of a user.
func (d *connectDriver) list(ctx context.Context, _ string, place map[string]any) ([]Handle, bool, error) {
	const op = "list"
	user, _ := place["user"].(string)
	if user == "" {
		return nil, false, unbuildable(op, "the place has no user")
	}
	keys, err := d.keysOf(ctx, op, user)
	if err != nil {
		return nil, false, err
	}
	handles := make([]Handle, len(keys))
	for i, k := range keys {
		handles[i] = Handle{Name: k.name, Accessor: k.id}
	}
	return handles, true, nil
}

// keysOf returns the keys of the credential's user.
func (d *connectDriver) keysOf(ctx context.Context, op, user string) ([]connectKey, error) {
	c := d.call(op, http.MethodGet, d.apiKey, "v1", "users", user, "keys")
	c.ok, c.denied, c.wantBody, c.urgent, c.hint = []int{200}, []int{400, 401, 403, 404}, true, true, keysHint
	answered, err := d.api.do(ctx, c)
	if err != nil {
		return nil, err
	}
	value, ok := decodeJSON(answered.body)
	list, isList := value.([]any)
	if !ok || !isList {
		return nil, protocol(op, "the answer is not a list of keys")
	}
	keys := make([]connectKey, len(list))
	for i, element := range list {
		members, _ := element.(map[string]any)
		name, isText := members["name"].(string)
		keys[i] = connectKey{id: textOrNumber(members["id"]), name: name}
		if !isText || !validAccessor(keys[i].id) {
			return nil, protocol(op, "the answer is not a list of keys with id and name")
		}
	}
	return keys, nil
}

// checkCredential asks whose key the credential is.
func (d *connectDriver) checkCredential(ctx context.Context) error {
	const op = "check"
	c := d.call(op, http.MethodGet, d.apiKey, "v1", "user")
	c.ok, c.denied, c.wantBody = []int{200}, []int{401, 403, 404}, true
	c.hint = func(a answer) string {
		if connectCode(a) == codeNoPermission {
			return "the credential is a service principal's key, which can make no keys"
		}
		return keysHint(a)
	}
	a, err := d.api.do(ctx, c)
	if err != nil {
		return err
	}
	if username, _ := object(a.body)["username"].(string); username == "" {
		return protocol(op, "the answer is not Connect's; is a login page in front of the server?")
	}
	return nil
}
