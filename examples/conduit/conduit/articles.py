"""Articles, comments, favorites and tags: anyone reads, the author writes."""

import re
import secrets

from aiohttp import web

from server import answer, body, describe, public, query, requires, scoped

from .models import AddArticle, AddComment, Articles, ChangeArticle, Comments, Filters, OneArticle, OneComment, Tags
from .users import me, one

routes = web.RouteTableDef()
AUTHOR = """(SELECT to_json(p) FROM (SELECT username, bio, image, EXISTS (SELECT FROM follows f WHERE f.user_id = $1
             AND f.author = x.author) AS following FROM profiles WHERE user_id = x.author) AS p) AS author"""
ARTICLE = f"""slug, title, description, body, tags AS "tagList", created_at AS "createdAt", updated_at AS "updatedAt",
              EXISTS (SELECT FROM favorites f WHERE f.article = x.id AND f.user_id = $1) AS favorited,
              (SELECT count(*) FROM favorites f WHERE f.article = x.id) AS "favoritesCount", {AUTHOR}"""
COMMENT = f'id, body, created_at AS "createdAt", updated_at AS "updatedAt", {AUTHOR}'
CHOSEN = """($2::text IS NULL OR tags @> ARRAY[$2])
    AND ($3::text IS NULL OR author = (SELECT user_id FROM profiles WHERE username = $3))
    AND ($4::text IS NULL OR id IN (SELECT f.article FROM favorites f JOIN profiles p USING (user_id) WHERE p.username = $4))"""
FEED = f"author IN (SELECT f.author FROM follows f WHERE f.user_id = $1) AND {CHOSEN}"
SHOW = f"SELECT {ARTICLE} FROM articles x WHERE slug = $2"
ADD = f"""INSERT INTO articles AS x (author, slug, title, description, body, tags)
          VALUES ($1, $2, $3, $4, $5, $6) RETURNING {ARTICLE}"""
CHANGE = f"""UPDATE articles x SET title = coalesce($3, title), description = coalesce($4, description),
             body = coalesce($5, body) WHERE author = $1 AND slug = $2 RETURNING {ARTICLE}"""
FAVOR = "INSERT INTO favorites (user_id, article) SELECT $1, id FROM articles WHERE slug = $2 ON CONFLICT DO NOTHING"
DISFAVOR = "DELETE FROM favorites WHERE user_id = $1 AND article = (SELECT id FROM articles WHERE slug = $2)"
COMMENTS = f"""SELECT coalesce(json_agg(c), '[]') AS comments FROM (SELECT {COMMENT} FROM comments x
               WHERE article = (SELECT id FROM articles WHERE slug = $2) ORDER BY id LIMIT 200) AS c"""
ADD_COMMENT = f"""INSERT INTO comments AS x (author, article, body)
                  SELECT $1, id, $3 FROM articles WHERE slug = $2 RETURNING {COMMENT}"""


async def listed(request, chosen):
    wish = query(request, Filters)
    sql = f"""SELECT (SELECT coalesce(json_agg(a), '[]') FROM (SELECT {ARTICLE} FROM articles x WHERE {chosen}
                      ORDER BY created_at DESC, id DESC LIMIT $5 OFFSET $6) AS a) AS articles,
                     (SELECT count(*) FROM articles x WHERE {chosen}) AS "articlesCount" """
    async with scoped(request) as db:
        return answer(await db.row(sql, me(request), wish.tag, wish.author, wish.favorited, wish.limit, wish.offset))


async def gone(request, sql, *args):
    async with scoped(request) as db:
        if await db.fetchval(sql, me(request), *args) is None:
            raise web.HTTPNotFound
    return web.Response(status=204)


@routes.get("/api/articles")
@public(optional=True)
@describe(query=Filters, returns=Articles, summary="List articles, newest first")
async def list_articles(request):
    return await listed(request, CHOSEN)


@routes.get("/api/articles/feed")
@requires(user=True)
@describe(query=Filters, returns=Articles, summary="List the articles of followed authors")
async def list_feed(request):
    return await listed(request, FEED)


@routes.post("/api/articles")
@requires(user=True)
@describe(body=AddArticle, answers={201: OneArticle}, summary="Publish an article")
async def add_article(request):
    new = (await body(request, AddArticle)).article
    slug = f"{re.sub('[^a-z0-9]+', '-', new.title.lower())[:100].strip('-')}-{secrets.token_hex(4)}"
    row = (me(request), slug, new.title, new.description, new.body, sorted(set(new.tag_list)))
    return await one(request, "article", ADD, *row, status=201)


@routes.get("/api/articles/{slug}")
@public(optional=True)
@describe(returns=OneArticle, summary="Show an article")
async def show_article(request):
    return await one(request, "article", SHOW, me(request), request.match_info["slug"])


@routes.put("/api/articles/{slug}")
@requires(user=True)
@describe(body=ChangeArticle, returns=OneArticle, summary="Change the caller's article")
async def change_article(request):
    new = (await body(request, ChangeArticle)).article
    return await one(request, "article", CHANGE, me(request), request.match_info["slug"], new.title, new.description, new.body)


@routes.delete("/api/articles/{slug}")
@requires(user=True)
@describe(answers={204: None}, summary="Delete the caller's article")
async def delete_article(request):
    return await gone(request, "DELETE FROM articles WHERE author = $1 AND slug = $2 RETURNING 1", request.match_info["slug"])


@routes.post("/api/articles/{slug}/favorite")
@routes.delete("/api/articles/{slug}/favorite")
@requires(user=True)
@describe(returns=OneArticle, summary="Favor an article (POST), or no longer (DELETE)")
async def favor(request):
    before = FAVOR if request.method == "POST" else DISFAVOR
    return await one(request, "article", SHOW, me(request), request.match_info["slug"], before=before)


@routes.get("/api/articles/{slug}/comments")
@public(optional=True)
@describe(returns=Comments, summary="List the comments of an article")
async def list_comments(request):
    async with scoped(request) as db:
        return answer(await db.row(COMMENTS, me(request), request.match_info["slug"]))


@routes.post("/api/articles/{slug}/comments")
@requires(user=True)
@describe(body=AddComment, returns=OneComment, summary="Comment on an article")
async def add_comment(request):
    new = (await body(request, AddComment)).comment
    return await one(request, "comment", ADD_COMMENT, me(request), request.match_info["slug"], new.body)


@routes.delete("/api/articles/{slug}/comments/{id}")
@requires(user=True)
@describe(answers={204: None}, summary="Delete the caller's comment")
async def delete_comment(request):
    return await gone(request, "DELETE FROM comments WHERE author = $1 AND id::text = $2 RETURNING 1", request.match_info["id"])


@routes.get("/api/tags")
@public
@describe(returns=Tags, summary="List the tags in use")
async def list_tags(request):
    async with scoped(request) as db:
        return answer(await db.row("SELECT coalesce(json_agg(DISTINCT tag), '[]') AS tags FROM articles, unnest(tags) AS tag"))
