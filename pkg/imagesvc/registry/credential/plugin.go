package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxCached bounds the answers that are kept.
const maxCached = 1000

var errAnswer = errors.New("its answer is not what the protocol says")

// plugins are the kubelet's credential provider plugins (KEP-2133): programs that get a CredentialProviderRequest and
// answer with credentials, for some images and some time.
type plugins struct {
	config watched[[]provider]
	binDir string
	limit  time.Duration

	flights flights[answer]

	mu    sync.Mutex
	cache map[cacheKey]cached
}

// answer is what a plugin knows, by pattern of images.
type answer map[string]Credential

// cacheKey is which requests a cached answer is good for.
type cacheKey struct {
	provider string // its fingerprint
	kind     string // Image, Registry, Global
	value    string
}

type cached struct {
	answer answer
	until  time.Time
}

// lookup asks each plugin that is for the image.
func (p *plugins) lookup(ctx context.Context, image string) ([]Credential, []error) {
	providers, err := p.config.get()
	if err != nil {
		return nil, []error{fmt.Errorf("credential provider configuration %s: %w", p.config.path, err)}
	}
	var found []Credential
	var problems []error
	for i := range providers {
		v := &providers[i]
		if !slices.ContainsFunc(v.MatchImages, func(pattern string) bool { return matches(canonicalKey(pattern), image) }) {
			continue
		}
		if v.needsPod() {
			problems = append(problems, fmt.Errorf("credential provider %s is only for the kubelet: it needs a pod's service account", v.Name))
			continue
		}
		a, err := p.ask(ctx, v, image)
		if err != nil {
			problems = append(problems, fmt.Errorf("credential provider %s: %w", v.Name, err))
			continue
		}
		for _, pattern := range matching(a, image) {
			found = append(found, a[pattern])
		}
	}
	return found, problems
}

// ask is answered from the cache, or by the plugin. Equal questions at the same time are one.
func (p *plugins) ask(ctx context.Context, v *provider, image string) (answer, error) {
	fingerprint := v.fingerprint()
	if a, ok := p.cachedFor(fingerprint, image); ok {
		return a, nil
	}
	return p.flights.do(ctx, fingerprint+"\x00"+image, func(ctx context.Context) (answer, error) {
		if a, ok := p.cachedFor(fingerprint, image); ok {
			return a, nil // of the flight before
		}
		r, err := p.run(ctx, v, image)
		if err != nil {
			return nil, err
		}
		a := answer{}
		for pattern, c := range r.Auth {
			a[pattern] = Credential{Source: "credential provider " + v.Name, username: c.Username, password: c.Password}
		}
		p.keep(v, fingerprint, image, r, a)
		return a, nil
	})
}

// response is CredentialProviderResponse.
type response struct {
	APIVersion    string    `json:"apiVersion"`
	Kind          string    `json:"kind"`
	CacheKeyType  string    `json:"cacheKeyType"`
	CacheDuration *duration `json:"cacheDuration"`
	Auth          map[string]struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"auth"`
}

func (p *plugins) run(ctx context.Context, v *provider, image string) (response, error) {
	request, err := json.Marshal(map[string]string{"kind": "CredentialProviderRequest", "apiVersion": v.APIVersion, "image": image})
	if err != nil {
		return response{}, err
	}
	run := program{path: filepath.Join(p.binDir, v.Name), args: v.Args, env: os.Environ(), input: request, limit: p.limit}
	for _, e := range v.Env {
		run.env = append(run.env, e.Name+"="+e.Value)
		run.secrets = append(run.secrets, e.Value)
	}
	out, err := run.run(ctx)
	if err != nil {
		return response{}, err
	}
	var r response
	switch {
	case json.Unmarshal(out, &r) != nil: // the decoder's error quotes durations, which may be anything
		return r, errAnswer
	case r.Kind != "CredentialProviderResponse" || r.APIVersion != v.APIVersion:
		return r, fmt.Errorf("%w: not a CredentialProviderResponse of %s", errAnswer, v.APIVersion)
	case !slices.Contains([]string{"Image", "Registry", "Global"}, r.CacheKeyType):
		return r, fmt.Errorf("%w: cacheKeyType is not Image, Registry or Global", errAnswer)
	}
	return r, nil
}

// keys are under what an answer for an image may be kept.
func keys(fingerprint, image string) []cacheKey {
	registry, _, _ := strings.Cut(image, "/")
	return []cacheKey{{fingerprint, "Image", image}, {fingerprint, "Registry", registry}, {fingerprint, "Global", ""}}
}

func (p *plugins) cachedFor(fingerprint, image string) (answer, bool) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys(fingerprint, image) {
		if c, ok := p.cache[key]; ok && now.Before(c.until) {
			return c.answer, true
		}
	}
	return nil, false
}

func (p *plugins) keep(v *provider, fingerprint, image string, r response, a answer) {
	d := *v.DefaultCacheDuration
	if r.CacheDuration != nil {
		d = *r.CacheDuration
	}
	if d <= 0 {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cache) >= maxCached {
		maps.DeleteFunc(p.cache, func(_ cacheKey, c cached) bool { return now.After(c.until) })
	}
	if len(p.cache) >= maxCached {
		clear(p.cache)
	}
	for _, key := range keys(fingerprint, image) {
		if key.kind == r.CacheKeyType {
			p.cache[key] = cached{a, now.Add(time.Duration(d))}
		}
	}
}
